"""Chat templates become two strings around a prompt, which render what transformers renders."""

import json
from pathlib import Path

import hypothesis
import pytest
import transformers
from hypothesis import strategies as st

from routerjax import InputError
from routerjax.pretrained import ChatTemplate, read_chat_template
from tests.tokenizers_of_kinds import make_tokenizer_of

TURNS = ({"role": "system", "content": "You judge."}, {"role": "user", "content": "{prompt}"})
# As ChatML's, whose turns are kept as they are, and Llama 3's, which strips them.
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPPING = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n\n' + message['content'] | trim + "
    "'<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)


def save_template(folder: Path, template: str | None) -> Path:
    make_tokenizer_of("BPE of the whole text").save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    template_as_json = {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **template_as_json}))
    return folder


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("template", [PLAIN, STRIPPING])
def test_it_renders_what_transformers_renders(template: str, add_generation_prompt: bool, tmp_path: Path) -> None:
    folder = save_template(tmp_path, template)
    ours = read_chat_template(folder, TURNS, add_generation_prompt=add_generation_prompt)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    @hypothesis.given(st.text(max_size=50) | st.text("\n\t {}%<|>'\"\\", max_size=20))
    @hypothesis.settings(max_examples=50, deadline=None)
    def check(prompt: str) -> None:
        turns = [TURNS[0], {"role": "user", "content": prompt}]
        assert ours.render(prompt) == theirs.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    check()


def test_a_prompt_may_stand_in_a_text_of_a_turn(tmp_path: Path) -> None:
    turns = ({"role": "user", "content": "Judge [{prompt}] now"},)
    read = read_chat_template(save_template(tmp_path, STRIPPING), turns)
    assert read == ChatTemplate(prefix="<s><|user|>\n\nJudge [", suffix="] now<|eot|><|assistant|>\n\n")
    # The newer place of a template is read too.
    save_template(tmp_path, None)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert read_chat_template(tmp_path, turns) == ChatTemplate(prefix="Judge [", suffix="] now!")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[1].content | upper }}", "must write the prompt once, got 0 times"),
        ("{{ messages[1].content }}{{ messages[1].content }}", "must write the prompt once, got 2 times"),
        ("{{ messages[1].content | e }}", "changes the text of a prompt, such as "),
        (
            "{{ messages[1].content.split('</think>')[-1] }}",
            "changes the text of a prompt, such as '<think>a</think> b'",
        ),
        ("{{ messages[1].content[:4000] }}", "changes the text of a prompt, such as 'AAAA"),
        ("{{ raise_exception('no system turn') }}", "refuses the turns system, user: no system turn"),
        ("{{ messages", "refuses the turns system, user: "),
        ("{{ messages.__class__.__mro__ }}", "must write the prompt once, got 0|refuses the turns"),
    ],
)
def test_what_is_no_prefix_and_suffix_is_refused(
    template: str | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_chat_template(save_template(tmp_path, template), TURNS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_the_prompt_has_one_place(tmp_path: Path) -> None:
    for content in ("", "{prompt} {prompt}"):
        with pytest.raises(InputError, match=r"the turns must have \{prompt\} in one place, got [02]"):
            read_chat_template(tmp_path, [{"role": "user", "content": content}])
