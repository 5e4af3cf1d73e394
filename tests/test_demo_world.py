"""The demo's world and model: answers a program can check, mistakes it finds, prompts nobody saw before."""

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.demo import model, world
from prefdata.builds import ingest
from prefdata.builds.job import run
from prefdata.verify import verify

SOME = 400

BY_HAND = {
    "sort": ("sort the lines\n2 cat dog\n3 owl ant\n1 bee fly", "1 bee fly\n2 cat dog\n3 owl ant"),
    "reverse": ("reverse the lines\n1 cat dog\n2 owl ant", "2 owl ant\n1 cat dog"),
    "swap": ("swap the last two words\n1 cat dog ant\n2 owl bee fly", "1 cat ant dog\n2 owl fly bee"),
    "number": ("number the lines\ncat dog\nowl ant", "1 cat dog\n2 owl ant"),
    "look up": ("look up 3 1\n2 cat dog\n3 owl ant\n1 bee fly", "3 owl ant\n1 bee fly"),
    "add": ("add the word fox to each line\n1 cat dog\n2 owl ant", "1 cat dog fox\n2 owl ant fox"),
    "replace": ("replace cat by fox\n1 cat dog\n2 owl ant\n3 bee cat", "1 fox dog\n2 owl ant\n3 bee fox"),
    "keep": ("keep the lines with cat\n1 cat dog\n2 owl ant\n3 cat fly", "1 cat dog\n3 cat fly"),
}


def some_tasks(kind: str | None = None, seed: int = 0, count: int = SOME) -> list[world.Task]:
    rng = random.Random(seed)
    return [world.sample_task(rng, kind and (kind,)) for _ in range(count)]


def words(text: str) -> list[str]:
    return text.replace("\n", " \n ").split(" ")


@pytest.mark.parametrize("kind", world.KINDS)
def test_the_answer_worked_by_hand(kind: str) -> None:
    prompt, answer = BY_HAND[kind]
    assert world.solve(prompt) == answer
    assert world.check(prompt, f" {answer.replace(' ', '  ')}\n")  # white space is free
    for other in (answer.rsplit("\n", 1)[0], f"{answer}\n9 cat", answer.replace("\n", " "), "", prompt):
        assert not world.check(prompt, other)


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction of this world: 'sing a song'"):
        world.solve("sing a song")


@pytest.mark.parametrize("kind", world.KINDS)
def test_tasks_are_in_lines_of_the_length_and_the_words_promised(kind: str) -> None:
    for task in some_tasks(kind):
        assert task.kind == kind
        assert world.check(task.prompt, task.answer)
        assert 20 <= len(words(task.answer)) <= 100
        assert set(words(task.answer)) & set(world.WORDS) <= set(words(task.prompt))
        assert {*words(task.prompt), *words(task.answer)} <= {*world.VOCABULARY, "\n"}


def test_a_planted_mistake_is_never_right_and_every_sort_of_it_occurs() -> None:
    rng = random.Random(0)
    lengths = Counter[int]()
    for task in some_tasks():
        wrong = world.plant_mistake(task, rng)
        assert not world.check(task.prompt, wrong)
        lengths[len(wrong.split("\n")) - len(task.answer.split("\n"))] += 1
        if len(words(wrong)) == len(words(task.answer)) and sorted(words(wrong)) != sorted(words(task.answer)):
            assert sum(a != b for a, b in zip(words(wrong), words(task.answer), strict=True)) == 1
    assert set(lengths) == {-1, 0, 1}


def test_no_prompt_is_in_two_places() -> None:
    preference = {task.prompt for task in world.preference_tasks(0)}
    held_out = {task.prompt for task in world.held_out_tasks(0)}
    finetuning = {task.prompt for task in islice(world.finetuning_tasks(0), 20_000)}
    assert (len(preference), len(held_out)) == (2000, 300)
    assert len(finetuning) > 19_900
    assert not preference & held_out
    assert not finetuning & (preference | held_out)


def test_fine_tuning_passes_over_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = islice(world.finetuning_tasks(0), 2)
    monkeypatch.setattr(world, "_distinct", lambda seed: [first])
    assert next(world.finetuning_tasks(0)) == second


def test_everything_is_drawn_from_the_seed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for write in (world.write_pairs, world.write_heldout):
        for file, seed in zip(files, (0, 0, 1), strict=True):
            write(file, seed)
        one, again, other = (file.read_bytes() for file in files)
        assert one == again != other
    assert list(islice(world.finetuning_tasks(0), 50)) == list(islice(world.finetuning_tasks(0), 50))
    assert some_tasks(seed=0) != some_tasks(seed=1)


def test_held_out_pairs_are_the_held_out_tasks(tmp_path: Path) -> None:
    world.write_heldout(tmp_path / "test.jsonl", 0)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text("utf-8").splitlines()]
    tasks = world.held_out_tasks(0)
    assert [(row["prompt"], row["chosen"]) for row in rows] == [(task.prompt, task.answer) for task in tasks]
    assert not any(world.check(row["prompt"], row["rejected"]) for row in rows)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = model.make_tokenizer()
    tokenizer.save_pretrained(folder)
    model.make_model(tokenizer).save_pretrained(folder)
    return folder


def test_of_what_is_written_exactly_the_dirty_rows_are_set_aside(tmp_path: Path, untrained: Path) -> None:
    source = tmp_path / "source"
    world.write_pairs(source / "train.jsonl", 0)
    world.write_heldout(source / "test.jsonl", 0)
    options = ingest.Options(source=(str(source),), model=str(untrained))
    version = run(ingest.Ingest(options, str(tmp_path / "data"))).version
    assert version.manifest["counts"]["rows"] == {"test": 300, "train": 2000}
    assert Counter(line["reason"] for line in version.ledger().to_pylist() if line["reason"]) == {
        "unreadable_row": 3,  # cut, not JSON, a column twice
        "not_an_object": 1,
        "missing_field": 3,
        "wrong_type": 2,
        "prompt_empty": 1,
        "chosen_empty": 1,
        "rejected_empty": 1,
        "identical_sides": 1,
        "replacement_character": 1,
        "lone_surrogate": 1,
        "scores_inverted": 1,
        "special_token_in_text": 2,
        "prompt_too_long": 1,
        "duplicate_row": 1,
    }
    assert verify(version) == []


def test_a_word_is_one_token_and_decoding_gives_the_text_back() -> None:
    tokenizer = model.make_tokenizer()
    for task in some_tasks():
        for text in (task.prompt, task.answer):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(words(text))
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_training_reads_what_the_template_writes_and_scores_the_answer_with_its_end() -> None:
    tokenizer = model.make_tokenizer()
    tasks = some_tasks(count=model.BATCH * model.SORTED_BATCHES)
    seen = set()
    batches = model._batches(iter(tasks), tokenizer, random.Random(0))
    for ids, scored in islice(batches, model.SORTED_BATCHES):
        for row, mask in zip(ids, scored, strict=True):
            kept = row[row != tokenizer.pad_token_id]
            seen.add((tuple(kept.tolist()), tokenizer.decode(row[mask])))
    assert seen == {
        (tuple(tokenizer.apply_chat_template(turns(task), return_dict=False)), f"{task.answer} {model.END}")
        for task in tasks
    }


def turns(task: world.Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]


def test_the_longest_task_fits_the_model() -> None:
    tokenizer = model.make_tokenizer()
    longest = max(
        len(tokenizer.apply_chat_template(turns(task), return_dict=False)) for task in some_tasks("look up", count=2000)
    )
    assert longest <= model.POSITIONS


def test_the_model_is_of_the_size_that_engines_can_run() -> None:
    made = model.make_model(model.make_tokenizer())
    config = made.config
    assert config.head_dim == 32
    assert config.num_attention_heads * config.head_dim == config.hidden_size == 64
    assert 150_000 < sum(parameter.numel() for parameter in made.parameters()) < 250_000


def test_training_again_gives_the_same_model_and_leaves_the_callers_draws_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "STEPS", 4)
    one, again, other = (train_from(state, seed) for state, seed in ((5, 0), (6, 0), (6, 1)))
    assert weights(one).equal(weights(again))
    assert not weights(one).equal(weights(other))


def train_from(state: int, seed: int) -> Any:
    torch.manual_seed(state)
    before = torch.get_rng_state()
    trained, _ = model.train(seed, say=lambda line: None)
    assert torch.equal(before, torch.get_rng_state())
    return trained


def weights(of: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in of.parameters()])


def test_a_slow_machine_stops_in_time_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(model, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(model, "GRACE_SECONDS", 0.1)
    model.train(0, said.append)
    assert said[-1].startswith("stopped after ")


def trained_nothing(seed: int, say: Any) -> tuple[Any, Any]:
    tokenizer = model.make_tokenizer()
    return model.make_model(tokenizer), tokenizer


def never(*args: Any) -> Any:
    raise AssertionError("it was trained again")


def test_a_model_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(model, "train", trained_nothing)
    folder = model.cached(tmp_path, 0)
    assert model.cached(tmp_path, 1) != folder
    monkeypatch.setattr(model, "train", never)
    assert model.cached(tmp_path, 0) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(model.END)
    assert tokenizer.chat_template == model.CHAT_TEMPLATE
    monkeypatch.setattr(model, "_digest", lambda: "other code")
    with pytest.raises(AssertionError, match="trained again"):
        model.cached(tmp_path, 0)


def test_a_half_written_model_is_never_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(seed: int, say: Any) -> tuple[Any, Any]:
        made, tokenizer = trained_nothing(seed, say)
        monkeypatch.setattr(tokenizer, "save_pretrained", never)
        return made, tokenizer

    monkeypatch.setattr(model, "train", half_written)
    with pytest.raises(AssertionError):
        model.cached(tmp_path, 0)
    monkeypatch.setattr(model, "train", trained_nothing)
    folder = model.cached(tmp_path, 0)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }


def test_accuracy_is_counted_by_the_checker(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = some_tasks("sort", count=4) + some_tasks("add", count=2)
    written = [task.answer for task in tasks[:3]] + ["1 apple"] + [task.answer for task in tasks[4:]]
    monkeypatch.setattr(model, "answers", lambda *args: written)
    assert model.exact_accuracy(untrained, tasks) == {"sort": 0.75, "add": 1.0}


def test_answers_do_not_depend_on_what_they_are_batched_with(untrained: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(untrained).eval(), model.make_tokenizer()
    prompts = [task.prompt for task in some_tasks(count=6)]
    assert model.answers(loaded, tokenizer, prompts) == model.answers(loaded, tokenizer, prompts, batch=1)
