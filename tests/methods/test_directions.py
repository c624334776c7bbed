"""Directions worked by hand, hidden in noise, and compared with the authors' values."""

from collections.abc import Callable

import pytest
import torch

from harness import directions
from harness.types import Example, Pair, Range


def test_mean_difference_by_hand() -> None:
    positive, negative = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert directions.mean_difference(positive, negative).tolist() == [1.0, 3.0]


def test_unit_by_hand_and_zero_stays_zero() -> None:
    units = directions.unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.allclose(units, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_principal_direction_ignores_the_mean() -> None:
    sample = torch.tensor([[100.0, 1.0], [100.1, -1.0], [100.0, 3.0], [99.9, -3.0]])
    assert directions.principal_direction(sample)[1].abs() > 0.99


def test_principal_direction_of_a_constant_sample_is_zero() -> None:
    assert directions.principal_direction(torch.ones(4, 3)).tolist() == [0.0, 0.0, 0.0]


def test_pair_differences_by_hand() -> None:
    sample = torch.tensor([[0.0, 0.0], [3.0, 4.0], [5.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    differences = directions.pair_differences(sample, torch.tensor([1, 2, 0, 3, 4]))
    expected = directions.unit(torch.tensor([[3.0, 4.0], [2.0, -2.0]]))
    assert torch.allclose(differences, expected)


def test_oriented_turns_towards_the_wanted() -> None:
    positive, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    for sign in (1.0, -1.0):
        axis = directions.oriented(torch.tensor([sign, 0.0]), positive, negative)
        assert axis.tolist() == [1.0, 0.0]


def test_equal_norms_keeps_directions_and_gives_the_mean_norm() -> None:
    vectors = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert torch.allclose(directions.equal_norms(vectors), torch.tensor([[[1.8, 2.4]], [[0.0, 3.0]]]))


def test_sign_agreement_by_hand() -> None:
    difference = torch.tensor([[1.0, -1.0, 0.0, 1.0, 0.0], [2.0, -9.0, 0.0, -1.0, -1.0], [-1.0, -1.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([2 / 3, -1.0, 0.0, 1 / 3, -1 / 3])
    assert torch.allclose(directions.sign_agreement(difference), expected)


def test_ranks_give_ties_to_the_earlier_entry() -> None:
    assert directions.ranks(torch.tensor([[0.5, 0.9], [0.9, 0.1]])).tolist() == [[2, 0], [1, 3]]


def test_groups_are_found_again_by_name() -> None:
    groups = directions.grouped([Pair("", "", "", "b"), Pair("", "", "", "é"), Pair("", "", "", "b")])
    assert {name: rows.tolist() for name, rows in groups.items()} == {"b": [0, 2], "é": [1]}
    artifact = {"groups": directions.encoded_names(list(groups))}
    assert directions.group_rows(artifact, [Example("1", "q", group="é"), Example("2", "q", group="b")]).tolist() == [
        1,
        0,
    ]
    with pytest.raises(
        ValueError, match=r"group of 3 must be one that contrast pairs were given for \(b, é\), got 'c'"
    ):
        directions.group_rows(artifact, [Example("3", "q", group="c")])


def test_a_single_group_serves_every_example() -> None:
    artifact = {"groups": directions.encoded_names([""])}
    assert directions.group_rows(artifact, [Example("1", "q", group="history")]).tolist() == [0]


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no contrast pairs"):
        directions.grouped([])


@pytest.mark.parametrize("count", [0, 2.5, 11, Range(low=0, high=4, default=1)])
def test_count_out_of_range_is_an_error(count: float | Range) -> None:
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 10"):
        directions.check_count("k", count, 10)


def test_axbench_directions_agree_with_the_authors(golden: Callable) -> None:
    reference = golden("axbench")
    acts, mask = torch.from_numpy(reference["token_acts"]), torch.from_numpy(reference["attention_mask"]).bool()
    mask[:, : int(reference["prefix_length"])] = False
    labels = torch.from_numpy(reference["labels"]).bool()
    positive, negative = acts[labels][mask[labels]], acts[~labels][mask[~labels]]
    direction = directions.unit(directions.mean_difference(positive, negative))
    assert torch.allclose(direction, torch.from_numpy(reference["w_diffmean"]), rtol=1e-5, atol=1e-5)
    pairs = directions.pair_differences(positive, torch.from_numpy(reference["lat_permutation"]))
    for name, sample in (("w_pca", positive), ("w_lat", pairs)):
        expected = torch.from_numpy(reference[name])
        direction = directions.principal_direction(sample)
        assert torch.allclose(direction * torch.sign(direction @ expected), expected, rtol=1e-5, atol=1e-5), name
