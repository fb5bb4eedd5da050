/** The bodies that schema/requests.ts lets through, as types. */

type Given<T> = T | null

export interface SamplingBody {
  readonly model?: Given<string>
  readonly max_tokens?: Given<number>
  readonly temperature?: Given<number>
  readonly top_p?: Given<number>
  readonly n?: Given<number>
  readonly stop?: Given<string | readonly string[]>
  readonly seed?: Given<number>
  readonly presence_penalty?: Given<number>
  readonly frequency_penalty?: Given<number>
  readonly logit_bias?: Given<Readonly<Record<string, number>>>
  readonly stream?: Given<boolean>
  readonly stream_options?: Given<{ readonly include_usage?: Given<boolean> }>
  readonly top_k?: Given<number>
  readonly min_p?: Given<number>
  readonly repetition_penalty?: Given<number>
  readonly min_tokens?: Given<number>
  readonly ignore_eos?: Given<boolean>
  readonly stop_token_ids?: Given<readonly number[]>
  readonly priority?: Given<number>
  readonly deadline_ms?: Given<number>
  readonly cache_salt?: Given<string>
  readonly guided_json?: Given<object | string>
  readonly guided_regex?: Given<string>
  readonly guided_grammar?: Given<string>
  readonly guided_choice?: Given<readonly string[]>
  readonly program?: Given<string>
  readonly tpot_target_ms?: Given<number>
  readonly pin_ttl_ms?: Given<number>
}

export interface MessageBody {
  readonly role: string
  readonly content?: Given<string | readonly { readonly type: string; readonly text?: string }[]>
  readonly [field: string]: unknown
}

export interface ToolBody {
  readonly type: string
  readonly function: {
    readonly name: string
    readonly parameters?: Given<object>
    readonly strict?: Given<boolean>
  }
}

export interface ChatBody extends SamplingBody {
  readonly messages: readonly MessageBody[]
  readonly max_completion_tokens?: Given<number>
  readonly logprobs?: Given<boolean>
  readonly top_logprobs?: Given<number>
  readonly response_format?: Given<{
    readonly type: string
    readonly json_schema?: { readonly schema: unknown }
  }>
  readonly tools?: Given<readonly ToolBody[]>
  readonly tool_choice?: Given<
    string | { readonly type: string; readonly function?: { readonly name: string } }
  >
  readonly parallel_tool_calls?: Given<boolean>
  readonly chat_template_kwargs?: Given<Readonly<Record<string, unknown>>>
}

export interface CompletionBody extends SamplingBody {
  readonly prompt: string | readonly string[] | readonly number[] | readonly (readonly number[])[]
  readonly logprobs?: Given<number>
  readonly echo?: Given<boolean>
  readonly suffix?: Given<string>
  readonly best_of?: Given<number>
}

export interface TokenizeBody {
  readonly model?: Given<string>
  readonly prompt?: Given<string>
  readonly add_special_tokens?: Given<boolean>
  readonly messages?: Given<readonly MessageBody[]>
  readonly tools?: Given<readonly ToolBody[]>
  readonly chat_template_kwargs?: Given<Readonly<Record<string, unknown>>>
}

export interface DetokenizeBody {
  readonly model?: Given<string>
  readonly tokens: readonly number[]
}
