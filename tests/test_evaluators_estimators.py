"""The scikit-learn forms of the evaluators: scikit-learn's own checks, and the numbers of the functions."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from ssl_nb.evaluators import knn, linear_probe
from ssl_nb.evaluators.estimators import KNNClassifier, LinearProbe, NeuralPredictivity, OODDetector
from ssl_nb.evaluators.predictivity import neural_predictivity
from ssl_nb.evaluators.robustness import ood_scores

X, Y = load_digits(return_X_y=True)
KNOWN = Y < 7
TRAIN, LABELS, TEST, OOD = X[:1000][KNOWN[:1000]], Y[:1000][KNOWN[:1000]], X[1000:][KNOWN[1000:]], X[~KNOWN]


@parametrize_with_checks([
    KNNClassifier(k=3), LinearProbe(), LinearProbe(l2=0.01), OODDetector(), OODDetector("knn", k=3), OODDetector(shrinkage=0),
    NeuralPredictivity(components=1), NeuralPredictivity("ridge")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_classifiers_agree_with_functions():
    split = X[:1000], Y[:1000], X[1000:], Y[1000:]
    for estimator, score in ((KNNClassifier(), knn(*split)), (LinearProbe(), linear_probe(*split))):
        assert estimator.fit(*split[:2]).score(*split[2:]) == score


@pytest.mark.parametrize(
    "kind, use_labels", [("mahalanobis", True), ("mahalanobis", False), ("knn", False), *((kind, False) for kind in
                         ("relative_mahalanobis", "max_softmax", "energy", "vim"))])
def test_detector_gives_the_scores_of_ood_scores(kind, use_labels):
    detector = OODDetector(kind, use_labels=use_labels, k=20).fit(TRAIN, LABELS)
    given = LABELS if use_labels or kind not in ("mahalanobis", "knn") else None
    notes = ood_scores(TRAIN, TEST, OOD, given, kinds=kind, k=20)[kind]["auroc"].notes
    np.testing.assert_allclose(detector.score_samples(TEST), notes["inside"], rtol=1e-6)
    np.testing.assert_allclose(detector.score_samples(OOD), notes["outside"], rtol=1e-6)
    assert detector.score_samples(TEST).mean() > detector.score_samples(OOD).mean()  # high means known


@pytest.mark.parametrize("contamination", [0.05, 0.2, 0.5])
def test_threshold_turns_away_the_share_that_was_asked_for(contamination):
    detector = OODDetector(contamination=contamination).fit(TRAIN)
    away = detector.predict(TRAIN) == -1
    assert away.mean() == pytest.approx(contamination, abs=2 / len(TRAIN))
    np.testing.assert_allclose(detector.decision_function(TRAIN), detector.score_samples(TRAIN) - detector.offset_)
    assert np.array_equal(away, detector.decision_function(TRAIN) < 0)
    detector.calibrate(TEST)
    assert (detector.predict(TEST) == -1).mean() == pytest.approx(contamination, abs=2 / len(TEST))


def test_detector_in_a_pipeline_and_in_folds():
    pipeline = make_pipeline(PCA(20), OODDetector("knn", k=5))
    assert set(pipeline.fit(TRAIN).predict(OOD)) == {-1, 1}
    truth = np.where(KNOWN, 1, -1)
    scores = cross_val_score(OODDetector("knn", k=5), X, truth, cv=3, scoring="roc_auc")
    assert scores.shape == (3,) and np.isfinite(scores).all()
    assert clone(OODDetector("knn", k=7)).get_params()["k"] == 7


@pytest.mark.parametrize(
    "options, y, message",
    [
        (dict(kind="knnn"), None, "knn"),
        (dict(kind="knn", k=10**6), None, "rows of the bank"),
        (dict(contamination=0), None, "contamination"),
        (dict(contamination=0.7), None, "contamination"),
        (dict(kind="max_softmax"), None, "needs labels"),
        (dict(use_labels=True), None, "needs labels"),
        (dict(use_labels=True), np.zeros(len(TRAIN)), "one class"),
        (dict(shrinkage=2), None, "shrinkage"),
    ],
)
def test_detector_refuses(options, y, message):
    with pytest.raises(ValueError, match=message):
        OODDetector(**options).fit(TRAIN, y)


def test_neural_predictivity_estimator_is_the_function_on_one_split():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(200, 10))
    y = z @ rng.normal(size=(10, 5)) + rng.normal(size=(200, 5))
    order = np.random.default_rng(7).permutation(200)
    train, test = order[20:], order[:20]
    for kind in ("pls", "ridge"):
        fitted = NeuralPredictivity(kind, components=3, ceiling=0.9).fit(z[train], y[train])
        expected = neural_predictivity(z, y, kind, components=3, splits=1, seed=7, ceiling=0.9)
        assert fitted.score(z[test], y[test]) == pytest.approx(expected)
    theirs = PLSRegression(3, scale=False).fit(z[train], y[train]).predict(z[test])
    assert NeuralPredictivity(components=3).fit(z[train], y[train]).predict(z[test]) == pytest.approx(theirs)


def test_neural_predictivity_estimator_keeps_the_shape_of_one_unit_and_names_bad_settings():
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    assert NeuralPredictivity(components=2).fit(z, y).predict(z).shape == (50,)
    assert NeuralPredictivity(components=2).fit(z, y[:, None]).predict(z).shape == (50, 1)
    with pytest.raises(ValueError, match="components=25"):
        NeuralPredictivity().fit(z, y)
    with pytest.raises(ValueError, match="lasso"):
        NeuralPredictivity("lasso").fit(z, y)
