"""What methods are called in tables and figures."""

METHODS = {
    "leo.prototypes.NearestCentroid": "nearest centroid",
    "leo.prototypes.LinearPrototypes": "linear prototypes",
    "leo.meta_sgd.MetaSGD": "Meta-SGD",
    "leo.leo.LEO": "LEO",
}
