"""Every text of the interface, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

CATALOGUE: Mapping[str, Mapping[str, str]] = {
    "en": {
        "new_chat": "New chat",
        "conversations": "Conversations",
        "untitled": "Untitled",
        "family": "Family",
        "family_all": "All families",
        "family_other": "Other",
        "model_more": "Precision and chat format",
        "tier": "Precision",
        "tier_info": "Lower ones need less memory; automatic takes the best that fits",
        "tier_auto": "Automatic",
        "waits": "{name} is loaded when the running reply is over; Stop ends it now.",
        "chat_format": "Chat format",
        "chat_format_info": "How turns are put to the model",
        "chat_format_own": "The checkpoint's own",
        "base_model": "Base model (续写): it continues text; a question is put to it in a 问/答 frame.",
        "model": "Model",
        "model_info": "Choose one, or paste a checkpoint's folder or .gguf file",
        "base": "Ask about",
        "base_info": "Add PDF, text or Markdown files below",
        "base_none": "No documents: just chat",
        "base_new": "New knowledge base",
        "base_new_hint": "Its name, then Enter",
        "base_default": "My documents",
        "upload": "Add PDF, text or Markdown files",
        "documents": "Documents",
        "documents_none": "Nothing here yet. Add files above, then ask about them.",
        "message_hint": "Ask anything. Enter sends, Shift+Enter makes a new line.",
        "chat": "Chat",
        "empty": (
            "### What would you like to know?\n\nChat with the model on this machine, or add documents "
            "and ask about them.\nNothing you write leaves this machine."
        ),
        "sources": "Sources",
        "sources_none": "When you ask about your documents, the passages behind the answer appear here.",
        "page": "page {page}",
        "page_short": "p. {page}",
        "score": "score {score}",
        "nothing_found": "The documents do not say anything on this.",
        "unanswered": "There is no reply.",
        "state_empty": "No model is loaded.",
        "state_loading": "Loading {name} …",
        "state_ready": "{name} is ready at {tier}. Chat format: {format}.",
        "fetching": "Fetching {name} once: {done} of {total} MB",
        "small_model": "The embedded model is small and for trying out: trust the quoted passages more than its words.",
        "waiting": "Waiting: {ahead} before you",
        "looking": "Looking …",
        "reading": "Read {done} of {total} tokens",
        "writing": "Writing …",
        "stopped": "Stopped.",
        "done": "{speed} tokens/s · first token after {first} s · {tokens} tokens",
        "cut_length": "The reply reached its longest length.",
        "dropped_turns": "Left out to fit the window: the oldest {count} exchanges.",
        "dropped_passages": "Left out to fit the window: the weakest {count} passages.",
        "ingest_done": "{name}: {pages} pages, {chunks} passages",
        "ingest_known": "{name} is already here",
        "ingest_pages": "{pages} pages",
        "reading_file": "Reading …",
    },
    "zh": {
        "new_chat": "新对话",
        "conversations": "对话",
        "untitled": "未命名",
        "family": "模型系列",
        "family_all": "全部系列",
        "family_other": "其他",
        "model_more": "精度与对话格式",
        "tier": "精度",
        "tier_info": "精度越低占用内存越少；自动选择放得下的最高精度",
        "tier_auto": "自动",
        "waits": "当前回答结束后加载 {name}；按“停止”可立即切换。",
        "chat_format": "对话格式",
        "chat_format_info": "对话以何种格式交给模型",
        "chat_format_own": "模型自带",
        "base_model": "基座模型（续写）：问题以“问/答”格式交给它续写。",
        "model": "模型",
        "model_info": "选择模型，或粘贴模型文件夹或 .gguf 文件的路径",
        "base": "提问范围",
        "base_info": "可在下方添加 PDF、文本或 Markdown 文件",
        "base_none": "不使用文档，直接对话",
        "base_new": "新建知识库",
        "base_new_hint": "输入名称后按回车",
        "base_default": "我的文档",
        "upload": "添加 PDF、文本或 Markdown 文件",
        "documents": "文档",
        "documents_none": "还没有文档。请在上方添加文件，然后提问。",
        "message_hint": "请输入问题。回车发送，Shift+回车换行。",
        "chat": "聊天",
        "empty": "### 想了解什么？\n\n与本机上的模型对话，或添加文档后提问。\n您输入的内容不会离开这台电脑。",
        "sources": "来源",
        "sources_none": "就文档提问时，答案所依据的段落会显示在这里。",
        "page": "第 {page} 页",
        "page_short": "第 {page} 页",
        "score": "相似度 {score}",
        "nothing_found": "文档中没有相关内容。",
        "unanswered": "没有回答。",
        "state_empty": "尚未加载模型。",
        "state_loading": "正在加载 {name} …",
        "state_ready": "{name} 已就绪（{tier}），对话格式：{format}。",
        "fetching": "首次使用，正在获取 {name}：{done} / {total} MB",
        "small_model": "内置模型很小，仅供试用，且只擅长英文：请以引用的原文段落为准。",
        "waiting": "排队中：前面还有 {ahead} 个请求",
        "looking": "正在查找 …",
        "reading": "已读 {done} / {total} 个词元",
        "writing": "正在回答 …",
        "stopped": "已停止。",
        "done": "{speed} 词元/秒 · 首词元 {first} 秒 · 共 {tokens} 词元",
        "cut_length": "回答已达到最大长度。",
        "dropped_turns": "窗口放不下，已略去最早的 {count} 轮对话。",
        "dropped_passages": "窗口放不下，已略去相关度最低的 {count} 个段落。",
        "ingest_done": "{name}：{pages} 页，{chunks} 个段落",
        "ingest_known": "{name} 已经在库中",
        "ingest_pages": "{pages} 页",
        "reading_file": "正在读取 …",
    },
}


def say(language: str, key: str, **values: object) -> str:
    """One text with its values filled in."""
    return CATALOGUE[language][key].format(**values)


def preferred(accept_language: str) -> str:
    """The first language of an Accept-Language header that the catalogue has; English if there is none."""
    for part in accept_language.split(","):
        language = part.split(";")[0].strip().lower().split("-")[0]
        if language in CATALOGUE:
            return language
    return "en"
