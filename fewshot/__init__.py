"""Few-shot classification of one's own images: stage 1's extractor and a meta-trained learner, put together."""

from fewshot.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]
