"""The evaluation report: measure a bundle on test data, write one self-contained HTML page."""

from pipelines.report.context import EvaluationOptions
from pipelines.report.evaluation import evaluate_bundle
from pipelines.report.page import MAX_BYTES, write_report
from pipelines.report.results import Evaluation

__all__ = ["MAX_BYTES", "Evaluation", "EvaluationOptions", "evaluate_bundle", "write_report"]
