"""``scr2mae text``: from text files to a ranked table, and errors before any work."""

import csv

import pytest

import scr2mae
from scr2mae.cli import text as command
from scr2mae.extra import text

TINY = "--size tiny --batch-size 16 --accumulate 1 --accelerator cpu -q"


@pytest.fixture
def folder(folder, documents, tokenizer):
    """A corpus, packed text, a model and two tables in the working folder."""
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    text.pack(documents, tokenizer, length=16, out=folder / "packed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text.RobertaR2MAE(tokenizer, size="tiny", **sizes).save_pretrained(folder / "model")
    rows = "".join(f"the {animal}\t{k}\n" for k, animal in enumerate(("dog", "cat"))) * 60
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("sentence\tlabel\n" + rows)
    return folder


def test_choices_are_those_of_the_package():
    assert list(command.SIZES) == list(text.SIZES)
    assert list(command.TASKS) == list(text.TASKS)


def test_text_becomes_packed_text_and_a_second_file_takes_its_tokenizer(folder, rows, run):
    assert run("text pack corpus.txt -o mine --vocab-size 290 --length 16") == 0
    out = rows()
    packed = text.TokenBlocks.load("mine")
    assert out == {
        "packed": "mine", "vocabulary": "290", "blocks": str(len(packed)), "length": "16",
        "tokens": str(packed.n_tokens),
    }  # fmt: skip
    assert run("text pack corpus.txt -o again --tokenizer mine --length 32 --max-blocks 3") == 0
    again = text.TokenBlocks.load("again")
    assert (len(again), again.length, again.tokenizer.sha256) == (3, 32, packed.tokenizer.sha256)


def test_the_tokenizer_of_roberta_comes_from_the_hub(folder, rows, run, monkeypatch, tokenizer, capsys):
    library = pytest.importorskip("tokenizers")
    asked = []
    monkeypatch.setattr(
        library.Tokenizer,
        "from_pretrained",
        staticmethod(lambda name: asked.append(name) or tokenizer.tokenizer),
    )
    assert run("text pack corpus.txt -o mine --hub-tokenizer FacebookAI/roberta-base --length 16") == 0
    assert asked == ["FacebookAI/roberta-base"]
    assert int(rows()["vocabulary"]) == len(tokenizer)
    assert run("text pack corpus.txt -o other --hub-tokenizer x --tokenizer mine") == 2
    monkeypatch.setattr(library.Tokenizer, "from_pretrained", staticmethod(lambda name: 1 / 0))
    assert run("text pack corpus.txt -o other --hub-tokenizer no/such") == 1
    assert "No tokenizer of 'no/such' on the hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "expected"), [("--scheme dynamic", "dynamic"), ("--scheme r2mae_cl", "r2mae_cl")]
)
def test_pretraining_saves_the_model_that_the_api_trains(folder, option, expected, rows, run):
    assert run(f"text pretrain packed -o out {option} --seed 3 --validation packed {TINY}") == 0
    out = rows()
    model = text.RobertaR2MAE.from_pretrained("out")
    scheme = scr2mae.schemes("text", seed=3)[expected]
    assert model.mask_ratio == scheme.mask_ratio
    same = text.RobertaR2MAE(
        model.tokenizer, size="tiny", mask_ratio=scheme.mask_ratio, curriculum=scheme.curriculum, seed=3
    )
    blocks = text.TokenBlocks.load("packed")
    text.pretrain(
        same, blocks, validation=blocks, batch_size=16, accumulate_grad_batches=1, accelerator="cpu",
        enable_progress_bar=False,
    )  # fmt: skip
    assert (model.network.lm_head.bias == same.network.lm_head.bias).all()
    assert float(out["validation_loss"]) == pytest.approx(
        same.history_["validation_loss"]["validation_loss"].iloc[-1], abs=1e-4
    )


def test_a_run_goes_on_from_its_checkpoints(folder, capsys, run):
    line = f"text pretrain packed -o out --mask-ratio 0.3 --checkpoint-dir run {TINY}"
    assert run(line) == 0
    assert run(line + " --force --resume run --max-epochs 2") == 0
    assert len(text.RobertaR2MAE.from_pretrained("out").history_["train_loss"]) == 2
    assert text.RobertaR2MAE.from_pretrained("out").mask_ratio == 0.3


def test_losses_finetuning_and_ranks_are_tables(folder, capsys, rows, run):
    assert run("text loss model packed --ratios 0.15 0.4 --accelerator cpu") == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert [float(row["ratio"]) for row in table] == [0.15, 0.4]
    tune = "text finetune model --task sst2 --train train.tsv --test dev.tsv --seeds 0 1 --accelerator cpu -q"
    assert run(f"{tune} --length 16 --lr 1e-2 --max-epochs 6 -o good.csv") == 0
    out = rows()
    assert out["accuracy"] == "1.0000"
    assert run(f"{tune} --length 16 --lr 1e-9 --max-epochs 1 -o poor.csv --name frozen") == 0
    capsys.readouterr()
    assert run("text rank poor.csv good.csv") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["method", "sst2", "rank"]
    assert [(line[0], line[2]) for line in lines[1:]] == [("model", "1.0000"), ("frozen", "2.0000")]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("text pack -o out", 2, "either text files or --hub"),
        ("text pack corpus.txt --hub x -o out", 2, "either text files or --hub"),
        ("text pack corpus.txt --hub-config x -o out", 2, "belongs to --hub"),
        ("text pack none.txt -o out", 1, "No file or folder none.txt"),
        ("text pack corpus.txt -o packed", 1, "exists and is not empty"),
        ("text pretrain packed -o out --mask-ratio 0.4 0.1", 2, "a low and a high one"),
        ("text pretrain packed -o out --mask-ratio 0.4 --scheme cl", 2, "in place of --scheme"),
        ("text pretrain nowhere -o out", 1, "No file or folder nowhere"),
        ("text pretrain packed -o model", 1, "exists and is not empty"),
        ("text pretrain packed -o out --lr 0", 2, "expected a number above 0"),
        ("text finetune model --task sst2 --train train.tsv -o out.csv", 2, "both --train and --test"),
        ("text finetune model --task qnli --train train.tsv --test dev.tsv -o out.csv", 1, "has no column"),
        ("text rank train.tsv", 1, "lacks the columns"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(folder, capsys, line, code, message, run):
    before = {path.name for path in folder.iterdir()}
    assert run(line) == code
    assert message in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == before
