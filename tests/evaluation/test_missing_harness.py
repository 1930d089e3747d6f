"""Without lm-eval, tasks say what to install and texts go on working."""

import pytest

from nm_export.errors import UserError
from nm_export.evaluation import harness, load_tasks


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'lm_eval.*pip install "nm_export\[eval\]"'):
        load_tasks(["piqa"])
