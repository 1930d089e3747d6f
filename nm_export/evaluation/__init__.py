"""Quality of a model on held-out text and on tasks, beside the dense model's."""

from nm_export.evaluation.estimate import Estimate
from nm_export.evaluation.generation_scores import GenerationScores, evaluate_generation
from nm_export.evaluation.harness import TaskSuite, evaluate_tasks, load_tasks
from nm_export.evaluation.layer_scores import LayerScore, LayerScores, score_layers
from nm_export.evaluation.model import evaluate
from nm_export.evaluation.quality import Divergence, divergence, perplexity, torch_logits
from nm_export.evaluation.remembered import RememberedLogits
from nm_export.evaluation.report import Evaluation
from nm_export.evaluation.task_scores import TaskScore, mean_relative_drop, relative_drop
from nm_export.evaluation.text_scores import TextScores, evaluate_text
from nm_export.evaluation.windows import TextWindows, read_windows

__all__ = [
    "Divergence",
    "Estimate",
    "Evaluation",
    "GenerationScores",
    "LayerScore",
    "LayerScores",
    "RememberedLogits",
    "TaskScore",
    "TaskSuite",
    "TextScores",
    "TextWindows",
    "divergence",
    "evaluate",
    "evaluate_generation",
    "evaluate_tasks",
    "evaluate_text",
    "load_tasks",
    "mean_relative_drop",
    "perplexity",
    "read_windows",
    "relative_drop",
    "score_layers",
    "torch_logits",
]
