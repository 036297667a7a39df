"""Meta-learning on features: episodes, learners (LEO and its baselines), their training and testing.

Dimension letters used in every signature: B tasks, N classes (ways), K support images of a class (shots),
Q query images of a class, M latent codes of a class (1, or K in the released code), D feature width,
Z latent width, E width of the space in which the classifier is linear, C classes of a split, n images of it.
"""
