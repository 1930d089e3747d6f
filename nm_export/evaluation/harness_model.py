"""A model in memory, PyTorch or ONNX Runtime, as lm-eval sees models. Needs lm-eval: imported by `harness` only."""

import copy
import sys
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase


class HarnessModel(HFLM):
    """lm-eval's own transformers model around one that is loaded already, with bars on terminals only.

    `NMSparseORTModelForCausalLM` answers the same calls as a torch model (`model(ids).logits`, `generate`), so both
    run through the same code, and rows are padded on the right for both.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        """Wrap a model; the tokenizer is copied, because the harness gives it a padding token."""
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            device=str(model.device),
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, and whether each is the greedy one."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm or _no_terminal())
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts."""
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm or _no_terminal())
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string."""
        texts: list[str] = super().generate_until(requests, disable_tqdm or _no_terminal())
        return texts


def _no_terminal() -> bool:
    return not sys.stderr.isatty()
