"""The teacher in this process: a real tiny Llama with a tokenizer and a chat template, built here."""

import shutil

import pytest
import torch
from teacher_server import ask

from ncvc.teachers.teacher import Answer, Failure, Request, TeacherSettings

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny")
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<unk>"]
    characters = sorted(set("肺炎とは何か痛風高血圧症の治療を述べよ。、あいうえおかきくけこ0123456789"))
    tokenizer = Tokenizer(
        models.WordLevel({piece: n for n, piece in enumerate(special + characters)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>", additional_special_tokens=special[3:6])  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(special) + len(characters), hidden_size=32, intermediate_size=64,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def in_process(directory, **changes):
    from ncvc.teachers.in_process import open_teacher

    plain = {"name": "tiny", "backend": "transformers", "directory": str(directory), "temperature": 1.0}
    return open_teacher(TeacherSettings(**{**plain, **changes}))


def independent(directory, prompt, *, temperature, max_tokens, seed=0):
    """One token at a time without cache, batch or padding: the definition of sampling by Gumbel noise."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    generator, drawn = torch.Generator().manual_seed(seed), []
    for _ in range(max_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([ids + drawn])).logits[0, -1]
        if temperature:
            noise = torch.rand(len(scores), generator=generator, dtype=torch.float64)
            scores = scores.double() / temperature - (-noise.log()).log()
        drawn.append(int(scores.argmax()))
        if drawn[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(drawn, skip_special_tokens=True), len(drawn)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_model_in_process_generates_what_plain_decoding_does(model_directory, temperature):
    asked = [ask(text, seed=seed, max_tokens=20, temperature=temperature)
             for seed, text in enumerate(["肺炎とは何か", "痛風", "高血圧症の治療を述べよ。", "何か"])]  # fmt: skip
    results = list(in_process(model_directory, batch_size=3).answer(asked))
    for request, result in zip(asked, results, strict=True):
        prompt = f"<|user|>{request.messages[0]['content']}<|assistant|>"
        text, tokens = independent(model_directory, prompt, temperature=temperature, max_tokens=20, seed=request.seed)
        assert (result.text, result.tokens) == (text.strip(), tokens)
        assert result.finish_reason == ("stop" if tokens < 20 else "length")


def test_an_answer_depends_on_its_request_and_not_on_its_batch(model_directory):
    asked = [ask("肺炎とは何か" * (1 + number % 3), seed=number, max_tokens=8 + number) for number in range(7)]
    together = [result.text for result in in_process(model_directory, batch_size=7).answer(asked)]
    alone = [result.text for result in in_process(model_directory, batch_size=1).answer(reversed(asked))]
    assert together == alone[::-1]
    assert len(set(together)) > 1


def test_top_p_draws_only_from_the_nucleus_at_the_right_rates():
    from ncvc.teachers.in_process import _SeededSampling

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    settings = TeacherSettings(name="t", backend="transformers", directory="x", temperature=1.0, top_p=0.9)
    draw = _SeededSampling([ask("?", seed=n) for n in range(4000)], settings, device=torch.device("cpu"))
    drawn = draw(torch.zeros(4000, 1), probabilities.log().expand(4000, 4)).argmax(-1)
    rates = torch.bincount(drawn, minlength=4) / 4000
    assert rates[3] == 0
    assert torch.allclose(rates[:3], probabilities[:3] / 0.95, atol=0.03)  # 4 standard errors


def test_a_request_that_does_not_fit_fails_alone(model_directory):
    asked = [
        ask("肺炎"),
        ask("肺炎" * 40),
        Request([{"role": "assistant", "content": "?"}, *ask("痛風").messages], 0, 4),
    ]
    results = list(in_process(model_directory).answer(asked))
    assert [type(result) for result in results] == [Answer, Failure, Answer]
    assert "exceed the context of 64" in results[1].reason


def test_a_chat_format_takes_the_place_of_the_template(model_directory):
    chat = {"system": "{content}", "user": "{content}。", "assistant": "{content}", "reply": "<|assistant|>"}
    teacher = in_process(model_directory, chat_format=chat, system_message="述べよ。")
    (result,) = teacher.answer([ask("痛風", max_tokens=10, temperature=0.0)])
    text, _ = independent(model_directory, "述べよ。痛風。<|assistant|>", temperature=0, max_tokens=10)
    assert result.text == text.strip()


def test_model_directories_that_cannot_be_used_are_refused_by_name(model_directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"teacher\.directory"):
        in_process(tmp_path)
    for content in ("{", '{"model_type": "nobody_knows"}', '{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}'):
        (tmp_path / "config.json").write_text(content)
        (tmp_path / "evil.py").write_text("raise SystemExit('the code of the model ran')")
        with pytest.raises(ValueError, match=r"teacher\.directory=.*cannot load it"):
            in_process(tmp_path)
    with pytest.raises(ValueError, match=r"teacher\.device=nowhere"):
        in_process(model_directory, device="nowhere")
    with pytest.raises(ValueError, match=r"teacher\.dtype"):
        in_process(model_directory, dtype="float33")


def test_the_identity_in_process_changes_with_the_weights(model_directory, tmp_path):
    copied = shutil.copytree(model_directory, tmp_path / "copy")
    first, second = in_process(copied).identity, in_process(model_directory).identity
    assert first.pop("model") == "copy" and second.pop("model") == model_directory.name
    assert first == second
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert in_process(copied).identity["files"] != first["files"]
