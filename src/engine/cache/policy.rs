//! Which answers are worth keeping: those that are whole.
//!
//! A cache that keeps a truncated, filtered or empty answer serves it for as long as it lives, to everybody who asks.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::engine::error::Error;

/// Answers that are kept besides those that are whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlsoKept {
    /// Cut off by a limit of tokens, or not told to be at its end.
    pub truncated: bool,
    /// Cut off or emptied by a filter of the server's.
    pub filtered: bool,
    /// Without a text, a refusal or a tool call.
    pub empty: bool,
}

/// What is wrong with an answer that was paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Its end is missing.
    Truncated,
    /// A filter took of it.
    Filtered,
    /// It says nothing.
    Empty,
}

impl Flaw {
    const NAMES: [(&'static str, Self); 3] =
        [("truncated", Self::Truncated), ("filtered", Self::Filtered), ("empty", Self::Empty)];
}

impl AlsoKept {
    /// By the names of what is kept.
    ///
    /// # Errors
    /// A configuration error for a name that is none.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut kept = Self::default();
        for name in names {
            match Flaw::NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, Flaw::Truncated)) => kept.truncated = true,
                Some((_, Flaw::Filtered)) => kept.filtered = true,
                Some((_, Flaw::Empty)) => kept.empty = true,
                None => {
                    let known = "\"truncated\", \"filtered\" and \"empty\"";
                    return Err(Error::configuration(format!("also_keep may name {known}, not {name:?}")));
                }
            }
        }
        Ok(kept)
    }

    /// Whether an answer with that body is kept.
    pub fn keeps(self, body: &[u8]) -> bool {
        match flaw(body) {
            None => true,
            Some(Flaw::Truncated) => self.truncated,
            Some(Flaw::Filtered) => self.filtered,
            Some(Flaw::Empty) => self.empty,
        }
    }
}

/// What is looked at of an answer; everything else is skipped.
#[derive(Deserialize)]
struct Answer {
    /// Of chat and of completions.
    choices: Option<Vec<Choice>>,
    /// Of Responses.
    output: Option<Vec<Value>>,
    status: Option<String>,
    incomplete_details: Option<Value>,
    /// Of embeddings, and of what else lists results (reranking).
    data: Option<Vec<IgnoredAny>>,
    results: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Choice {
    finish_reason: Option<String>,
    /// Of completions.
    text: Option<String>,
    message: Option<Value>,
}

/// What is wrong with the answer of that body, in `OpenAI`'s format.
pub fn flaw(body: &[u8]) -> Option<Flaw> {
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Some(Flaw::Truncated) };
    if let Some(choices) = answer.choices {
        return if choices.is_empty() { Some(Flaw::Empty) } else { choices.iter().find_map(Choice::flaw) };
    }
    if let Some(output) = answer.output {
        let reason = answer.incomplete_details.as_ref().and_then(|details| details.get("reason")?.as_str());
        return match answer.status.as_deref() {
            Some("incomplete") if reason == Some("content_filter") => Some(Flaw::Filtered),
            Some("completed") | None if output.iter().any(says_something) => None,
            Some("completed") | None => Some(Flaw::Empty),
            Some(_) => Some(Flaw::Truncated),
        };
    }
    match answer.data.or(answer.results) {
        Some(list) if list.is_empty() => Some(Flaw::Empty),
        _ => None,
    }
}

impl Choice {
    fn flaw(&self) -> Option<Flaw> {
        match self.finish_reason.as_deref() {
            Some("content_filter") => Some(Flaw::Filtered),
            Some("length" | "error" | "cancelled") | None => Some(Flaw::Truncated),
            Some(_) if self.says_something() => None,
            Some(_) => Some(Flaw::Empty),
        }
    }

    fn says_something(&self) -> bool {
        const SAYING: [&str; 5] = ["content", "refusal", "tool_calls", "function_call", "audio"];
        let says = |message: &Value| SAYING.iter().any(|name| message.get(name).is_some_and(is_something));
        self.text.as_deref().is_some_and(|text| !text.is_empty()) || self.message.as_ref().is_some_and(says)
    }
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Whether a part of a Responses answer is more than its opening: a message of words, or a call.
fn says_something(part: &Value) -> bool {
    let Some(content) = part.get("content").and_then(Value::as_array) else {
        return part.get("type").is_some_and(|kind| kind != "reasoning");
    };
    content.iter().any(|piece| ["text", "refusal"].iter().any(|name| piece.get(name).is_some_and(is_something)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(reason: &str, message: &str) -> Option<Flaw> {
        flaw(format!(r#"{{"choices":[{{"finish_reason":{reason},"message":{message}}}]}}"#).as_bytes())
    }

    #[test]
    fn a_chat_is_whole_if_every_choice_ended_by_itself_and_says_something() {
        let hello = r#"{"content":"hello"}"#;
        for reason in [r#""stop""#, r#""tool_calls""#, r#""function_call""#, r#""eos""#] {
            assert_eq!(chat(reason, hello), None, "{reason}");
        }
        for reason in [r#""length""#, r#""error""#, "null"] {
            assert_eq!(chat(reason, hello), Some(Flaw::Truncated), "{reason}");
        }
        assert_eq!(chat(r#""content_filter""#, hello), Some(Flaw::Filtered));
        for empty in [r"{}", r#"{"content":""}"#, r#"{"content":null,"tool_calls":[]}"#] {
            assert_eq!(chat(r#""stop""#, empty), Some(Flaw::Empty), "{empty}");
        }
        for said in [r#"{"content":null,"tool_calls":[{}]}"#, r#"{"refusal":"no"}"#] {
            assert_eq!(chat(r#""stop""#, &said.replace("{}", r#"{"id":"1"}"#)), None, "{said}");
        }
        let two = r#"{"choices":[{"finish_reason":"stop","text":"a"},{"finish_reason":"length","text":"b"}]}"#;
        assert_eq!(flaw(two.as_bytes()), Some(Flaw::Truncated));
    }

    #[test]
    fn a_response_is_whole_if_it_is_completed_and_says_something() {
        let said = r#"[{"type":"message","content":[{"type":"output_text","text":"hello"}]}]"#;
        let of = |status: &str, output: &str| {
            let details = r#""incomplete_details":{"reason":"content_filter"}"#;
            flaw(format!(r#"{{"status":{status},"output":{output},{details}}}"#).as_bytes())
        };
        assert_eq!(of(r#""completed""#, said), None);
        assert_eq!(of(r#""completed""#, r#"[{"type":"function_call","name":"f"}]"#), None);
        assert_eq!(of(r#""completed""#, r#"[{"type":"reasoning"}]"#), Some(Flaw::Empty));
        assert_eq!(of(r#""incomplete""#, said), Some(Flaw::Filtered));
        for status in ["queued", "in_progress", "failed", "cancelled"] {
            assert_eq!(of(&format!("{status:?}"), said), Some(Flaw::Truncated), "{status}");
        }
    }

    #[test]
    fn lists_are_whole_unless_they_are_empty_and_what_is_no_object_never_is() {
        assert_eq!(flaw(br#"{"data":[{"embedding":"AAAA"}]}"#), None);
        assert_eq!(flaw(br#"{"data":[]}"#), Some(Flaw::Empty));
        assert_eq!(flaw(br#"{"results":[{}]}"#), None);
        assert_eq!(flaw(br#"{"choi"#), Some(Flaw::Truncated));
    }

    #[test]
    fn what_is_not_whole_is_kept_only_by_its_name() {
        let cut = br#"{"choices":[{"finish_reason":"length","text":"a"}]}"#;
        assert!(!AlsoKept::default().keeps(cut));
        assert!(!AlsoKept::named(["filtered", "empty"]).unwrap().keeps(cut));
        assert!(AlsoKept::named(["truncated"]).unwrap().keeps(cut));
        assert!(AlsoKept::named(["all"]).unwrap_err().to_string().contains("also_keep"));
    }
}
