"""What a process of the job imports sooner or later, and the parser of its settings: for ``forked.fork_server``."""

import os

import matplotlib.backends.backend_svg  # noqa: F401
import torch._dynamo  # noqa: F401

from job import check, compare, evaluate, predict, prepare, report, train, watch  # noqa: F401
from job.config import command_line
from job.display import run_page  # noqa: F401
from job.evaluation import metrics, samples  # noqa: F401
from job.models import footprint, registry, weights  # noqa: F401
from job.runs import export, restored, tracking  # noqa: F401
from job.training import trainer  # noqa: F401

command_line._parser()
os.environ.pop("PYTHONPATH")
