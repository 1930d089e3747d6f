"""What other libraries' exceptions say, in a few words."""


def reason(error: BaseException) -> str:
    """Return the first line of an error; transformers adds paragraphs of advice."""
    line = (str(error).strip().splitlines() or [""])[0]
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own; read that code, then set model.trust_remote_code: true"
    return line if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: {line}"
