"""Function calls as text and as data: how completions write them, what a row expects, whether the two agree.

`tool_call` puts the four together: `strict_json` reads JSON, `written` the calls of a completion, `expected` a row's
functions and answers by way of `schema`, `matching` compares. None of them knows a reward."""
