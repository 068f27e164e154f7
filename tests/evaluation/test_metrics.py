import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from medpclip.evaluation.metrics import accuracy, balanced_accuracy, confusion_matrix, mean_recall

cases = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40)
    )
)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_agrees_with_scikit_learn(case):
    classes, pairs = case
    true, predicted = np.array(pairs).T
    confusion = confusion_matrix(true, predicted, classes)
    assert (confusion == reference.confusion_matrix(true, predicted, labels=range(classes))).all()
    assert accuracy(confusion) == reference.accuracy_score(true, predicted)
    # Recall by its definition: scikit-learn's balanced_accuracy_score warns about classes that are only predicted.
    recalls = [(predicted[true == c] == c).mean() for c in set(true.tolist())]
    assert np.isclose(balanced_accuracy(confusion), np.mean(recalls))
    if set(predicted) <= set(true):
        assert np.isclose(balanced_accuracy(confusion), reference.balanced_accuracy_score(true, predicted))


def test_a_class_absent_from_the_truth_is_left_out():
    confusion = confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert balanced_accuracy(confusion) == 0.75  # (1/2 + 1) / 2, not / 3


def test_no_case_is_no_number():
    assert np.isnan(balanced_accuracy(np.zeros((3, 3), int)))
    assert np.isnan(accuracy(np.zeros((3, 3), int)))
    assert np.isnan(mean_recall(np.zeros((2, 3)), np.zeros((2, 3)))).all()
