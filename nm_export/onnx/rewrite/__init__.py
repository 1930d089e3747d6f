"""Rewrite rules that turn a dense graph into one that prunes: one a file, which states it as before -> after."""
