"""Few-shot classification of one's own images: stage 1's extractor and a meta-trained learner, put together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]


def __getattr__(name: str) -> Any:
    """The classifier, once it is asked for: it takes scikit-learn, which ``stage=predict`` does without."""
    if name in __all__:
        from fewshot import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
