"""Small files in the official layout of each GLUE task, with the oddities that the real ones have."""

from __future__ import annotations

from pathlib import Path

TREE = "( parse )"
PARSED = ["promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
MNLI = ["index", *PARSED, "sentence2_parse", "sentence1", "sentence2"]
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2".split()
MRPC = ["#1 ID", "#2 ID", "#1 String", "#2 String"]


def table(*rows: list[str], header: list[str] | None = None) -> str:
    return "".join("\t".join(row) + "\n" for row in ([header] if header else []) + list(rows))


def mnli(*pairs: tuple[str, str], labels: list[list[str]] | None = None, label_names: tuple[str, ...] = ()) -> str:
    rows = []
    for number, pair in enumerate(pairs):
        said = labels[number] if labels else []
        rows.append([str(number), "31193", "31193n", "government", *[TREE] * 4, *pair, *said])
    return table(*rows, header=[*MNLI, *label_names])


FIVE = ("label1", "label2", "label3", "label4", "label5", "gold_label")
FILES = {
    "glue/cola": {  # no header, but in the test set
        "train.tsv": table(["gj04", "1", "", 'He said "yes.'], ["gj04", "0", "*", "Yes he 'said."]),
        "dev.tsv": table(["gj04", "1", "", "The sailors rode the breeze."]),
        "test.tsv": table(["0", "Bill slept."], ["1", "Slept bill the."], header=["index", "sentence"]),
    },
    "glue/sst2": {
        "train.tsv": table(
            ["a charming journey . ", "1"], ["unflinchingly \u2028bleak", "0"], header=["sentence", "label"]
        ),
        "dev.tsv": table(['" one quote', "1"], header=["sentence", "label"]),
        "test.tsv": table(["7", "dull"], header=["index", "sentence"]),
    },
    "glue/mrpc": {  # a byte-order mark, carriage returns
        "train.tsv": "\ufeff" + table(["1", "12", "34", "Amrozi accused.", "Accused."], header=["Quality", *MRPC]),
        "dev.tsv": "\ufeff"
        + table(["0", "56", "78", "He said.", "She said."], header=["Quality", *MRPC]).replace("\n", "\r\n"),
        "test.tsv": table(["0", "1", "2", "One.", "Two."], header=["index", *MRPC]),
    },
    "glue/stsb": {
        "train.tsv": table(
            ["0", "news", "MSR", "2012", "0001", "none", "none", "A plane is taking off.", "A plane flies.", "4.750"],
            header=[*STSB, "score"],
        ),
        "dev.tsv": table(
            ["0", "captions", "f", "2012", "0002", "none", "none", 'A "man" sings.', "A man eats.", "0.000"],
            ["1", "captions", "f", "2012", "0003", "none", "none", "A dog.", "A dog.", "5.000"],
            header=[*STSB, "score"],
        ),
        "test.tsv": table(["0", "g", "f", "2015", "0024", "none", "none", "A girl.", "A boy."], header=STSB),
    },
    "glue/qqp": {  # some lines of the real file are broken
        "train.tsv": table(
            ["133273", "213221", "213222", "How is it?", "How was it?", "0"],
            ["402555", "536040"],
            ["360472", "364011", "490273", "What causes stool color to change?", "What causes it?", "1"],
            header=["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ),
        "dev.tsv": table(
            ["1", "2", "3", "Why?", "Why not?", "0"],
            header=["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ),
        "test.tsv": table(["9", "Who?", "Who is it?"], header=["id", "question1", "question2"]),
    },
    "glue/mnli": {
        "train.tsv": mnli(
            ("Conceptually.", "Product."), ("You know.", "You forget."),
            labels=[["neutral", "neutral"], ["entailment", "entailment"]], label_names=("label1", "gold_label"),
        ),
        "dev_matched.tsv": mnli(
            ("The new rights.", "Everyone."), ("No one agrees.", "On this."),
            labels=[["neutral", "entailment", "neutral", "neutral", "neutral", "neutral"],
                    ["neutral", "entailment", "entailment", "neutral", "contradiction", "-"]],
            label_names=FIVE,
        ),
        "dev_mismatched.tsv": mnli(
            ("Your gift.", "Hundreds."), labels=[["contradiction"] * 6], label_names=FIVE,
        ),
        "test_matched.tsv": mnli(("Hierbas.", "A drink."), ("Two.", "Three.")),
        "test_mismatched.tsv": mnli(("What.", "Which.")),
    },
    "glue/qnli": {
        split: table(["0", "Who?", "Him.", *([] if split == "test.tsv" else ["not_entailment"])],
                     header=["index", "question", "sentence", *([] if split == "test.tsv" else ["label"])])
        for split in ("train.tsv", "dev.tsv", "test.tsv")
    },
    "glue/rte": {
        split: table(["0", "No weapons.", "Weapons.", *([] if split == "test.tsv" else ["entailment"])],
                     header=["index", "sentence1", "sentence2", *([] if split == "test.tsv" else ["label"])])
        for split in ("train.tsv", "dev.tsv", "test.tsv")
    },
    "glue/wnli": {
        split: table(["0", "I stuck a pin.", "The pin.", *([] if split == "test.tsv" else ["1"])],
                     header=["index", "sentence1", "sentence2", *([] if split == "test.tsv" else ["label"])])
        for split in ("train.tsv", "dev.tsv", "test.tsv")
    },
}  # fmt: skip
FOLDERS = dict(
    zip(FILES, ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"], strict=True)
)  # of GLUE's own


def write(name: str, folder: Path) -> Path:
    """Write the files of one task."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in FILES[name].items():
        (folder / file).write_bytes(text.encode())
    return folder
