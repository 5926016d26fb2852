// Reads requests as Ollama's routes decode them (encoding/json, the fields of its structs), and says what it understood.
//
// stdin: one object a line, {"path": "/v1/…", "body": "…"}; stdout: one Understood a line.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
)

type ToolFunction struct {
	Name        string         `json:"name"`
	Description string         `json:"description"`
	Parameters  map[string]any `json:"parameters"`
}

type Tool struct {
	Type     string       `json:"type"`
	Items    any          `json:"items"`
	Function ToolFunction `json:"function"`
}

type ChatRequest struct {
	Model    string `json:"model"`
	Messages []struct {
		Role       string   `json:"role"`
		Content    string   `json:"content"`
		Thinking   string   `json:"thinking"`
		Images     [][]byte `json:"images"`
		ToolName   string   `json:"tool_name"`
		ToolCallID string   `json:"tool_call_id"`
		ToolCalls  []struct {
			ID       string `json:"id"`
			Function struct {
				Index     int            `json:"index"`
				Name      string         `json:"name"`
				Arguments map[string]any `json:"arguments"`
			} `json:"function"`
		} `json:"tool_calls"`
	} `json:"messages"`
	Stream          *bool           `json:"stream"`
	Format          json.RawMessage `json:"format"`
	KeepAlive       any             `json:"keep_alive"`
	Tools           []Tool          `json:"tools"`
	Options         map[string]any  `json:"options"`
	Think           any             `json:"think"`
	Truncate        *bool           `json:"truncate"`
	Shift           *bool           `json:"shift"`
	DebugRenderOnly bool            `json:"_debug_render_only"`
	Logprobs        bool            `json:"logprobs"`
	TopLogprobs     int             `json:"top_logprobs"`
}

type StreamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type Reasoning struct {
	Effort string `json:"effort"`
}

type ChatCompletionRequest struct {
	Model    string `json:"model"`
	Messages []struct {
		Role      string `json:"role"`
		Content   any    `json:"content"`
		Reasoning string `json:"reasoning"`
		ToolCalls []struct {
			ID       string `json:"id"`
			Index    int    `json:"index"`
			Type     string `json:"type"`
			Function struct {
				Name      string `json:"name"`
				Arguments string `json:"arguments"`
			} `json:"function"`
		} `json:"tool_calls"`
		Name       string `json:"name"`
		ToolCallID string `json:"tool_call_id"`
	} `json:"messages"`
	Stream           bool           `json:"stream"`
	StreamOptions    *StreamOptions `json:"stream_options"`
	MaxTokens        *int           `json:"max_tokens"`
	Seed             *int           `json:"seed"`
	Stop             any            `json:"stop"`
	Temperature      *float64       `json:"temperature"`
	FrequencyPenalty *float64       `json:"frequency_penalty"`
	PresencePenalty  *float64       `json:"presence_penalty"`
	TopP             *float64       `json:"top_p"`
	ResponseFormat   *struct {
		Type       string `json:"type"`
		JSONSchema *struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"json_schema"`
	} `json:"response_format"`
	Tools           []Tool     `json:"tools"`
	Reasoning       *Reasoning `json:"reasoning"`
	ReasoningEffort *string    `json:"reasoning_effort"`
	Logprobs        *bool      `json:"logprobs"`
	TopLogprobs     int        `json:"top_logprobs"`
	DebugRenderOnly bool       `json:"_debug_render_only"`
}

type CompletionRequest struct {
	Model            string         `json:"model"`
	Prompt           string         `json:"prompt"`
	FrequencyPenalty float32        `json:"frequency_penalty"`
	MaxTokens        *int           `json:"max_tokens"`
	PresencePenalty  float32        `json:"presence_penalty"`
	Seed             *int           `json:"seed"`
	Stop             any            `json:"stop"`
	Stream           bool           `json:"stream"`
	StreamOptions    *StreamOptions `json:"stream_options"`
	Temperature      *float32       `json:"temperature"`
	TopP             float32        `json:"top_p"`
	Suffix           string         `json:"suffix"`
	Logprobs         *int           `json:"logprobs"`
	DebugRenderOnly  bool           `json:"_debug_render_only"`
}

type EmbedRequest struct {
	Input          any    `json:"input"`
	Model          string `json:"model"`
	Dimensions     int    `json:"dimensions"`
	EncodingFormat string `json:"encoding_format"`
}

type ResponsesTool struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	Strict      *bool           `json:"strict"`
	Parameters  map[string]any  `json:"parameters"`
	Tools       []ResponsesTool `json:"tools"`
}

type ResponsesRequest struct {
	Model           string          `json:"model"`
	Background      bool            `json:"background"`
	Conversation    json.RawMessage `json:"conversation"`
	Include         []string        `json:"include"`
	Input           json.RawMessage `json:"input"`
	Instructions    string          `json:"instructions"`
	MaxOutputTokens *int            `json:"max_output_tokens"`
	Reasoning       Reasoning       `json:"reasoning"`
	Temperature     *float64        `json:"temperature"`
	Text            *struct {
		Format *struct {
			Type   string          `json:"type"`
			Name   string          `json:"name"`
			Schema json.RawMessage `json:"schema"`
			Strict *bool           `json:"strict"`
		} `json:"format"`
	} `json:"text"`
	TopP       *float64        `json:"top_p"`
	Truncation *string         `json:"truncation"`
	Tools      []ResponsesTool `json:"tools"`
	Stream     *bool           `json:"stream"`
}

type MessagesRequest struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	Messages  []struct {
		Role    string `json:"role"`
		Content any    `json:"content"`
	} `json:"messages"`
	System        any      `json:"system"`
	Stream        bool     `json:"stream"`
	Temperature   *float64 `json:"temperature"`
	TopP          *float64 `json:"top_p"`
	TopK          *int     `json:"top_k"`
	StopSequences []string `json:"stop_sequences"`
	Tools         []struct {
		Type        string          `json:"type"`
		Name        string          `json:"name"`
		Description string          `json:"description"`
		InputSchema json.RawMessage `json:"input_schema"`
		MaxUses     int             `json:"max_uses"`
	} `json:"tools"`
	ToolChoice *struct {
		Type                   string `json:"type"`
		Name                   string `json:"name"`
		DisableParallelToolUse bool   `json:"disable_parallel_tool_use"`
	} `json:"tool_choice"`
	Thinking *struct {
		Type         string `json:"type"`
		BudgetTokens int    `json:"budget_tokens"`
	} `json:"thinking"`
	Metadata *struct {
		UserID string `json:"user_id"`
	} `json:"metadata"`
	OutputConfig *struct {
		Effort string `json:"effort"`
	} `json:"output_config"`
}

type Understood struct {
	Error  string   `json:"error"`
	Model  string   `json:"model"`
	Stream bool     `json:"stream"`
	Cap    int      `json:"cap"`   // 0: none
	Usage  bool     `json:"usage"` // asked for at the end of a stream
	Debug  bool     `json:"debug"` // the prompt is shown instead of answered
	Loads  []string `json:"loads"` // what decides how or how long the model is loaded
	Tools  []string `json:"tools"` // their types
}

var loadOptions = []string{"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}

func understand(path string, body []byte) (u Understood, err error) {
	switch path {
	case "/api/chat":
		var r ChatRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model, Stream: r.Stream == nil || *r.Stream, Debug: r.DebugRenderOnly}
		if limit, ok := r.Options["num_predict"].(float64); ok {
			u.Cap = int(limit)
		}
		for _, name := range loadOptions {
			if _, ok := r.Options[name]; ok {
				u.Loads = append(u.Loads, name)
			}
		}
		if r.KeepAlive != nil {
			u.Loads = append(u.Loads, "keep_alive")
		}
		if r.Shift != nil {
			u.Loads = append(u.Loads, "shift")
		}
	case "/v1/chat/completions":
		var r ChatCompletionRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model, Stream: r.Stream, Cap: value(r.MaxTokens), Debug: r.DebugRenderOnly}
		u.Usage = r.StreamOptions != nil && r.StreamOptions.IncludeUsage
	case "/v1/completions":
		var r CompletionRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model, Stream: r.Stream, Cap: value(r.MaxTokens), Debug: r.DebugRenderOnly}
		u.Usage = r.StreamOptions != nil && r.StreamOptions.IncludeUsage
	case "/v1/embeddings":
		var r EmbedRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model}
	case "/v1/responses":
		var r ResponsesRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model, Stream: r.Stream != nil && *r.Stream, Cap: value(r.MaxOutputTokens)}
		u.Tools = types(r.Tools)
	case "/v1/messages":
		var r MessagesRequest
		err = json.Unmarshal(body, &r)
		u = Understood{Model: r.Model, Stream: r.Stream, Cap: r.MaxTokens}
		for _, tool := range r.Tools {
			u.Tools = append(u.Tools, strings.ToLower(tool.Type))
		}
	}
	return u, err
}

func value(limit *int) int {
	if limit == nil {
		return 0
	}
	return *limit
}

func types(tools []ResponsesTool) (found []string) {
	for _, tool := range tools {
		found = append(found, strings.ToLower(tool.Type))
		found = append(found, types(tool.Tools)...)
	}
	return found
}

func main() {
	in := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	defer out.Flush()
	answers := json.NewEncoder(out)
	for in.More() {
		var question struct{ Path, Body string }
		if err := in.Decode(&question); err != nil {
			panic(err)
		}
		understood, err := understand(question.Path, []byte(question.Body))
		if err != nil {
			understood.Error = err.Error()
		}
		if err := answers.Encode(understood); err != nil {
			panic(err)
		}
	}
}
