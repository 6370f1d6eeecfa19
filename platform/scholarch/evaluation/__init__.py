"""Evaluations of a frozen backbone, in one explicit registry; `face.py` says what each has."""

from __future__ import annotations

from scholarch.evaluation.artefacts import Artefacts
from scholarch.evaluation.correspondence import Correspondence
from scholarch.evaluation.depth import Depth
from scholarch.evaluation.discovery import Discovery
from scholarch.evaluation.face import Evaluation
from scholarch.evaluation.few_shot import FewShot
from scholarch.evaluation.knn import Knn
from scholarch.evaluation.linear import Linear
from scholarch.evaluation.logistic import Logistic
from scholarch.evaluation.resolution import Resolution
from scholarch.evaluation.retrieval import Retrieval
from scholarch.evaluation.segmentation import KnnDense, Segmentation
from scholarch.evaluation.stability import Stability
from scholarch.evaluation.tracking import Tracking
from scholarch.evaluation.words import TextRetrieval, TextSegmentation, ZeroShot

EVALUATIONS: dict[str, type[Evaluation]] = {
    "knn": Knn,
    "linear": Linear,
    "logistic": Logistic,
    "few_shot": FewShot,
    "segmentation": Segmentation,
    "knn_dense": KnnDense,
    "depth": Depth,
    "retrieval": Retrieval,
    "artefacts": Artefacts,
    "stability": Stability,
    "correspondence": Correspondence,
    "discovery": Discovery,
    "tracking": Tracking,
    "resolution": Resolution,
    "zero_shot": ZeroShot,
    "text_retrieval": TextRetrieval,
    "text_segmentation": TextSegmentation,
}
"""Kind -> class. Adding one is one file and one line here."""
