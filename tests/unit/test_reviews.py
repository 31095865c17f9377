"""Amazon reviews: both forms of the file, what is wrong with rows and files, the split that does not leak, the stand-in, the ids."""

import csv
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpml.data import reviews, summary, templates, tokens
from hpml.env import HpmlError, Unavailable

ROWS = [(2, "Great", 'It said "wow", twice\nand meant it'), (1, "Bad", "Broke: at once"), (2, "10 stars", "naïve, but good"),
        (1, "Late", "came ,1 day late")]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("data", "cache"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"HPML_{name.upper()}", str(tmp_path / name))
    monkeypatch.delenv("HPML_WEIGHTS", raising=False)
    return tmp_path


def published(path, rows, header=False):
    """As its publisher writes it: all quoted, a line end inside a text as backslash n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows(([["label", "title", "text"]] if header else []) + [[a, b, c.replace("\n", "\\n")] for a, b, c in rows])
    return path


def malformed(path, rows):
    path.write_text("review,sentiment" + "".join(f"{title}: {text}\n,{label}" for label, title, text in rows), encoding="utf-8")
    return path


def read(path):
    skipped = []
    return list(reviews.read(path, skipped)), skipped


def test_both_forms_hold_the_same_reviews(folders):
    proper, odd = published(folders / "p.csv", ROWS, header=True), malformed(folders / "m.csv", ROWS)
    assert read(proper) == read(odd) == read(published(folders / "q.csv", ROWS))
    found, skipped = read(odd)
    assert found == [(label - 1, title, text) for label, title, text in ROWS] and not skipped
    assert reviews.load(proper).checksum == reviews.load(odd).checksum


def test_what_cannot_be_used_is_skipped_counted_and_listed(folders):
    bad = [(3, "Three", "stars"), (1, "", " "), ("", "No label", "at all")]
    path = published(folders / "data" / "amazon" / "amazon.csv", ROWS + bad)
    with path.open("a") as file:
        file.write('"2","two columns"\n')
    found, skipped = read(path)
    assert len(found) == len(ROWS)
    assert [line.split(": ", 1)[1] for line in skipped] == [
        "line 5: label '3' is neither 1 nor 2", "line 6: an empty review", "line 7: label '' is neither 1 nor 2",
        "line 8: label '2 columns' is neither 1 nor 2"]
    assert reviews.problems("amazon", path) == skipped
    loaded = reviews.load()
    assert list(loaded.skipped) == skipped and "4 unusable rows skipped" in summary(loaded)["note"]
    odd = malformed(folders / "m.csv", ROWS + [(7, "Seven", "x")])
    with odd.open("a") as file:
        file.write("A title: and a text that was cut")
    found, skipped = read(odd)
    assert len(found) == len(ROWS) and [line.split(": ", 1)[1] for line in skipped] == [
        "record 5: label '7' is neither 1 nor 2", "its end: label '' is neither 1 nor 2"]


@pytest.mark.parametrize(("content", "said"), [
    ("review_id,stars,body\n1,5,good\n", "another schema: line 1 is 'review_id,stars,body'"), ("2,good\n", "another schema"),
    ('"3","a","b"\n"4","c","d"\n"2","e","f"\n', "label '3' is neither 1 nor 2 .2 of 3 rows"), ("", "no reviews"),
    ('"2","a","b"\n"1","never closed,"c"\n', "broken quotes"), ("label,title,text\n", "no reviews"),
    (b"\x00\x01\x02PK\xff\xfe\n", "another schema")])
def test_another_schema_is_refused_in_one_line_with_file_and_reason(folders, content, said):
    path = folders / "data" / "amazon" / "train.csv"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    published(path.with_name("test.csv"), ROWS)
    with pytest.raises(HpmlError, match=said) as caught:
        reviews.open_reviews("amazon")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert reviews.problems("amazon", path.parent) == [str(caught.value)]


def test_the_published_split_needs_both_files_and_does_not_repeat_a_review(folders):
    train = published(folders / "data" / "amazon" / "amazon_review_polarity_csv" / "train.csv", ROWS)
    with pytest.raises(HpmlError, match=r"test\.csv is missing"):
        reviews.open_reviews("real")
    published(train.with_name("test.csv"), [(1, "New", "one"), ROWS[0]])
    loaded = reviews.open_reviews("auto")
    assert list(loaded.test_texts) == ["New: one"] and "published split, 1 test reviews that repeat" in loaded.note
    assert loaded.train_labels.tolist() == [1, 0, 1, 0] and loaded.train_texts[0] == 'Great: It said "wow", twice\nand meant it'


def test_no_product_stands_on_both_sides(folders):
    random = np.random.default_rng(0)
    products = np.repeat(np.arange(400), random.integers(1, reviews.GAP, 400))  # in file order, as in the real file
    rows = [(1 + i % 2, f"product {p}", f"review {i}") for i, p in enumerate(products)]
    loaded = reviews.load(published(folders / "amazon.csv", rows))
    train, test = ({text.split(":")[0] for text in part} for part in (loaded.train_texts, loaded.test_texts))
    assert not train & test and len(train) > 3 * len(test) > 100
    assert 0.15 < len(loaded.test_texts) / len(rows) < 0.25 and "blocks of 400" in loaded.note


def test_without_a_file_real_says_what_to_do_and_auto_takes_the_stand_in():
    with pytest.raises(Unavailable, match="hpml data fetch amazon"):
        reviews.open_reviews("real")
    with pytest.raises(HpmlError, match="unknown"):
        reviews.open_reviews("cifar10")
    assert reviews.open_reviews("auto").origin == "stand-in"


def test_the_stand_in_is_deterministic_and_its_parts_share_no_text():
    one, again = templates.written(600, seed=0), templates.written(600, seed=0)
    assert one[0] == again[0] and templates.written(600, seed=1)[0] != one[0]
    loaded = templates.load(800, 200)
    assert len(set(loaded.train_texts)) == 800 and not set(loaded.train_texts) & set(loaded.test_texts)
    assert loaded.test_labels.mean() == 0.5
    assert all(text.partition(": ")[2] for text in loaded.train_texts), "no review is empty"


def test_a_subset_is_balanced_and_a_smaller_one_is_the_start_of_a_larger():
    whole = templates.load(800, 200)
    small, large = (reviews.subset(whole, n, 0, 0) for n in (50, 100))
    assert list(large.train_texts)[:50] == list(small.train_texts) and large.train_labels.mean() == 0.5
    assert reviews.subset(whole, 0, 9999, 0).train_texts is whole.train_texts
    assert list(pickle.loads(pickle.dumps(small)).train_texts) == list(small.train_texts)


def test_ids_are_cut_padded_on_the_left_and_cached(folders):
    found = tokens.with_tokenizer(templates.load(800, 200))
    assert "trained on the training texts" in summary(found)["tokenizer"]
    ids, mask = tokens.encoded(found.test_texts, found.tokenizer_file, 24)
    assert ids.shape == mask.shape == (200, 24) and (ids[:, -2:] == [4, 3]).all() and ((ids != tokens.PAD) == (mask == 1)).all()
    assert isinstance(tokens.encoded(found.test_texts, found.tokenizer_file, 24)[0], np.memmap)
    long, short = tokens.encode(tokens.open_tokenizer(found.tokenizer_file, 24), ["lamp " * 99, "lamp"])[1].sum(1)
    assert long == 24 and short == 3
    for fresh in (False, True):
        made = tokens.TokenDataset(found.test_texts, found.test_labels, found.tokenizer_file, 24, fresh=fresh)
        dataset = pickle.loads(pickle.dumps(made))
        one, weights, label = dataset[3]
        assert one.tolist() == ids[3].tolist() and weights.tolist() == mask[3].tolist() and label == found.test_labels[3]
        assert (one.dtype, weights.dtype) == (torch.int64, torch.float32)


def test_the_trained_tokenizer_is_the_same_in_every_process(folders):
    code = ("from hpml.data import templates, tokens; import hashlib, pathlib;"
            "found = tokens.with_tokenizer(templates.load(800, 200));"
            "print(hashlib.sha256(pathlib.Path(found.tokenizer_file).read_bytes()).hexdigest())")
    said = set()
    for name in ("a", "b", "c"):
        (folders / name).mkdir()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={**os.environ, "HPML_CACHE": str(folders / name)})
        said.add(done.stdout)
    assert len(said) == 1


def test_a_published_tokenizer_is_taken_and_a_wrong_one_refused(folders):
    made = tokens.with_tokenizer(templates.load(800, 200)).tokenizer_file
    there = folders / "data" / "tokenizers" / "xlnet-base-cased" / "tokenizer.json"
    there.parent.mkdir(parents=True)
    shutil.copyfile(made, there)
    found = tokens.with_tokenizer(templates.load(800, 200))
    assert (found.tokenizer, found.tokenizer_file) == ("xlnet-base-cased (tokenizer.json), published", str(there))
    for content, said in (("{", "not a tokenizer"), (there.read_text().replace("<sep>", "<SEP>"), "special tokens")):
        there.write_text(content)
        with pytest.raises(HpmlError, match=said) as caught:
            tokens.open_tokenizer(there, 16)
        assert str(there) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sentencepiece_model_alone_gives_its_own_pieces(folders):
    import sentencepiece

    there = folders / "data" / "tokenizers" / "xlnet-base-cased"
    there.mkdir(parents=True)
    texts, reference = templates.written(600, seed=0)[0], folders / "spiece"
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_prefix=str(reference), vocab_size=250, minloglevel=2,
                                             user_defined_symbols=["<cls>", "<sep>", "<pad>", "<mask>"])
    shutil.copyfile(f"{reference}.model", there / "spiece.model")
    found = tokens.with_tokenizer(templates.load(800, 200))
    assert found.tokenizer == "xlnet-base-cased (spiece.model), published"
    ids, mask = tokens.encode(tokens.open_tokenizer(found.tokenizer_file, 64), texts[:50])
    own = sentencepiece.SentencePieceProcessor(model_file=str(there / "spiece.model"))
    wanted = [[*own.encode(text), 4, 3] for text in texts[:50]]
    assert sum(row[kept == 1].tolist() == right for row, kept, right in zip(ids, mask, wanted, strict=True)) >= 45  # scores tie at times
