"""`optimum-cli export nm-sparse`: the same road under the command line of optimum.

optimum finds commands in the namespace `optimum.commands.register`; the wheel puts the file of the folder `register`
there, and nowhere else.
"""
