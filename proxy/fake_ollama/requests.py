"""The request types of Ollama's routes, as far as their fields have an effect."""

from proxy.fake_ollama.gojson import (
    ANY,
    BOOL,
    FLOAT,
    FLOAT32,
    INT,
    INTS,
    MAP,
    STRING,
    STRINGS,
    Kind,
    Struct,
    list_of,
    nested,
)

ToolCallFunction = Struct("ToolCallFunction", {"index": INT, "name": STRING, "arguments": MAP})
ToolCall = Struct("ToolCall", {"id": STRING, "function": nested(ToolCallFunction, "api.ToolCallFunction")})
Message = Struct(
    "Message",
    {
        "role": STRING,
        "content": STRING,
        "thinking": STRING,
        "images": list_of(STRING, "[]api.ImageData"),
        "tool_calls": list_of(nested(ToolCall, "api.ToolCall"), "[]api.ToolCall"),
        "tool_name": STRING,
        "tool_call_id": STRING,
    },
)
ToolFunction = Struct("ToolFunction", {"name": STRING, "description": STRING, "parameters": MAP})
Tool = Struct("Tool", {"type": STRING, "function": nested(ToolFunction, "api.ToolFunction")})
TOOLS = list_of(nested(Tool, "api.Tool"), "api.Tools")
MESSAGES = list_of(nested(Message, "api.Message"), "[]api.Message")

COMMON: dict[str, Kind] = {
    "model": STRING,
    "stream": BOOL,
    "keep_alive": ANY,
    "options": MAP,
    "format": ANY,
    "think": ANY,
    "truncate": BOOL,
    "shift": BOOL,
    "logprobs": BOOL,
    "top_logprobs": INT,
    "_debug_render_only": BOOL,
}
ChatRequest = Struct("ChatRequest", {**COMMON, "messages": MESSAGES, "tools": TOOLS})
GenerateRequest = Struct(
    "GenerateRequest",
    {
        **COMMON,
        "prompt": STRING,
        "suffix": STRING,
        "system": STRING,
        "template": STRING,
        "raw": BOOL,
        "images": list_of(STRING, "[]api.ImageData"),
        "context": INTS,
        "width": INT,
        "height": INT,
        "steps": INT,
    },
)
EmbedRequest = Struct(
    "EmbedRequest",
    {"model": STRING, "input": ANY, "truncate": BOOL, "dimensions": INT, "keep_alive": ANY, "options": MAP},
)
EmbeddingRequest = Struct(
    "EmbeddingRequest",
    {"model": STRING, "prompt": STRING, "keep_alive": ANY, "options": MAP},
)
ShowRequest = Struct(
    "ShowRequest",
    {"model": STRING, "name": STRING, "system": STRING, "template": STRING, "verbose": BOOL, "options": MAP},
)
CopyRequest = Struct("CopyRequest", {"source": STRING, "destination": STRING})
DeleteRequest = Struct("DeleteRequest", {"model": STRING, "name": STRING})
PullRequest = Struct("PullRequest", {"model": STRING, "name": STRING, "insecure": BOOL, "stream": BOOL})
PushRequest = Struct("PushRequest", {"model": STRING, "name": STRING, "insecure": BOOL, "stream": BOOL})
CreateRequest = Struct(
    "CreateRequest",
    {
        "model": STRING,
        "name": STRING,
        "stream": BOOL,
        "from": STRING,
        "files": MAP,
        "adapters": MAP,
        "template": STRING,
        "system": STRING,
        "license": ANY,
        "parameters": MAP,
        "messages": MESSAGES,
        "quantize": STRING,
        "quantization": STRING,
        "renderer": STRING,
        "parser": STRING,
        "requires": STRING,
        "info": MAP,
        "draft_files": MAP,
        "remote_host": STRING,
    },
)

StreamOptions = Struct("StreamOptions", {"include_usage": BOOL})
OPENAI_STREAM = {"stream": BOOL, "stream_options": nested(StreamOptions, "openai.StreamOptions")}
SAMPLING = {
    "seed": INT,
    "stop": ANY,
    "temperature": FLOAT,
    "top_p": FLOAT,
    "frequency_penalty": FLOAT,
    "presence_penalty": FLOAT,
}
OpenAIMessage = Struct(
    "Message",
    {
        "role": STRING,
        "content": ANY,
        "reasoning": STRING,
        "tool_calls": ANY,
        "name": STRING,
        "tool_call_id": STRING,
    },
)
OPENAI_MESSAGES = list_of(nested(OpenAIMessage, "openai.Message"), "[]openai.Message")
Reasoning = Struct("Reasoning", {"effort": STRING})
ChatCompletionRequest = Struct(
    "ChatCompletionRequest",
    {
        "model": STRING,
        "messages": OPENAI_MESSAGES,
        **OPENAI_STREAM,
        **SAMPLING,
        "max_tokens": INT,
        "response_format": ANY,
        "tools": TOOLS,
        "reasoning": nested(Reasoning, "openai.Reasoning"),
        "reasoning_effort": STRING,
        "logprobs": BOOL,
        "top_logprobs": INT,
        "_debug_render_only": BOOL,
    },
)
CompletionRequest = Struct(
    "CompletionRequest",
    {
        "model": STRING,
        "prompt": STRING,
        "suffix": STRING,
        **OPENAI_STREAM,
        **SAMPLING,
        "temperature": FLOAT32,
        "max_tokens": INT,
        "logprobs": INT,
    },
)
OpenAIEmbedRequest = Struct(
    "EmbedRequest",
    {"model": STRING, "input": ANY, "dimensions": INT, "encoding_format": STRING},
)
ResponsesRequest = Struct(
    "ResponsesRequest",
    {
        "model": STRING,
        "input": ANY,
        "instructions": STRING,
        "max_output_tokens": INT,
        "reasoning": nested(Reasoning, "openai.Reasoning"),
        "temperature": FLOAT,
        "top_p": FLOAT,
        "text": ANY,
        "tools": list_of(ANY, "[]openai.ResponsesTool"),
        "truncation": STRING,
        "stream": BOOL,
    },
)
Thinking = Struct("ThinkingConfig", {"type": STRING, "budget_tokens": INT})
OutputConfig = Struct("OutputConfig", {"effort": STRING})
AnthropicMessage = Struct("MessageParam", {"role": STRING, "content": ANY})
MessagesRequest = Struct(
    "MessagesRequest",
    {
        "model": STRING,
        "max_tokens": INT,
        "messages": list_of(nested(AnthropicMessage, "anthropic.MessageParam"), "[]anthropic.MessageParam"),
        "system": ANY,
        "stream": BOOL,
        "temperature": FLOAT,
        "top_p": FLOAT,
        "top_k": INT,
        "stop_sequences": STRINGS,
        "tools": list_of(ANY, "[]anthropic.Tool"),
        "thinking": nested(Thinking, "anthropic.ThinkingConfig"),
        "output_config": nested(OutputConfig, "anthropic.OutputConfig"),
    },
)
