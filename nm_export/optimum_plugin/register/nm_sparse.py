"""Tells optimum-cli of `export nm-sparse`."""

from optimum.commands.export.base import ExportCommand

from nm_export.optimum_plugin.command import NMSparseExportCommand

REGISTER_COMMANDS = [(NMSparseExportCommand, ExportCommand)]
