"""Where each linear stands in the grid of layers and kinds."""

from nm_export.card.grid import make_grid


def score(energy, error=0.1, state="both"):
    return {"retained_energy": energy, "output_error": error, "state": state}


DENSE = score(None, None, "dense")


def test_layers_and_kinds_in_the_models_order():
    grid = make_grid(
        {
            "modules": {
                "model.layers.0.self_attn.q_proj": DENSE,
                "model.layers.0.mlp.down_proj": score(0.9),
                "model.layers.10.self_attn.q_proj": score(0.8, 0.2, "decode"),
                "model.layers.2.mlp.down_proj": score(0.7),
            }
        }
    )
    assert (grid.kinds, grid.layers) == (("q_proj", "down_proj"), (0, 2, 10))
    assert grid.cells["q_proj", 10].state == "decode"
    assert ("q_proj", 2) not in grid.cells
    assert [layer for layer, _ in grid.row("down_proj")] == [0, 2]


def test_experts_are_averaged_and_equal_names_kept_apart():
    grid = make_grid(
        {
            "modules": {
                "model.layers.0.mlp.experts.0.w1": score(0.9, 0.1),
                "model.layers.0.mlp.experts.1.w1": score(0.7, 0.3),
                "model.layers.0.mlp.experts.2.w1": score(None, None),  # no token came by
                "model.layers.0.shared.w1": score(1.0, 0.0),
            }
        }
    )
    assert grid.kinds == ("mlp.experts.*.w1", "shared.w1")
    cell = grid.cells["mlp.experts.*.w1", 0]
    assert (cell.retained_energy, cell.output_error) == (0.8, 0.2)


def test_a_model_without_numbers_shows_nothing():
    assert not make_grid({"modules": {"model.layers.0.fc": DENSE}}).is_measured
