import numpy as np

from medpclip.evaluation.sections.box_geometry import BoxGeometry, features


def boxes_of(rng, count, low):
    corner = rng.uniform(low, low + 0.3, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.05, 0.15, (count, 2))], axis=1).astype(np.float32)


def test_features():
    found = features(np.array([[0.2, 0.4, 0.6, 0.5]]))
    assert np.allclose(found, [[0.4, 0.45, 0.4, 0.1, 0.04, np.log(4)]])


def test_learns_place_and_gives_nothing_to_classes_it_never_saw():
    rng = np.random.default_rng(0)
    train = np.concatenate([boxes_of(rng, 60, 0.0), boxes_of(rng, 60, 0.5), boxes_of(rng, 5, 0.2)])
    names = ["upper"] * 60 + ["lower"] * 60 + ["not asked"] * 5
    classifier = BoxGeometry(train, names, ["lower", "never", "upper"], seed=0)
    test = np.concatenate([boxes_of(rng, 20, 0.0), boxes_of(rng, 20, 0.5)])
    found = classifier.probabilities(test)
    assert (found.argmax(1) == [2] * 20 + [0] * 20).mean() > 0.9
    assert (found[:, 1] == 0).all() and np.allclose(found.sum(1), 1, atol=1e-5)
    assert (BoxGeometry(train, names, ["lower", "never", "upper"], seed=0).probabilities(test) == found).all()
    assert classifier.probabilities(np.zeros((0, 4), np.float32)).shape == (0, 3)


def test_a_rare_class_is_not_drowned():
    rng = np.random.default_rng(1)
    train = np.concatenate([boxes_of(rng, 400, 0.0), boxes_of(rng, 12, 0.5)])
    classifier = BoxGeometry(train, ["many"] * 400 + ["few"] * 12, ["few", "many"], seed=0)
    assert (classifier.probabilities(boxes_of(rng, 20, 0.5)).argmax(1) == 0).mean() > 0.9
