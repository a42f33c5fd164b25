//! What lines leave open, and the whole requests that they stand for with it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::input::{Ask, CHAT, Entry, MESSAGES, Members, read_object, refuse_stream, string};
use crate::engine::error::Error;
use crate::engine::provider::openai::quoted;
use crate::engine::provider::{ChatTemplate, Provider};
use crate::engine::types::Prompt;

/// What holds for every line that does not say otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usual<'a> {
    /// The model of lines that name none.
    pub(super) model: Option<&'a str>,
    /// The system message of shorthands without one.
    pub(super) system: Option<&'a str>,
    /// Settings of shorthands: the inside of a JSON object without its braces.
    pub(super) fields: &'a str,
}

/// A body that stays as it is, but for a model that it lacks.
#[derive(Debug)]
pub(super) struct Named<'a> {
    /// What it has besides.
    pub(super) members: Members<'a>,
    /// Its model; empty for a request that needs none.
    pub(super) model: String,
    /// What is sent.
    pub(super) body: Cow<'a, str>,
    /// Where the model stands in it, quotes included.
    pub(super) place: Range<usize>,
}

/// A chat request but for its messages.
#[derive(Debug)]
pub(super) struct Chat<'a> {
    /// Whom to ask.
    pub(super) model: String,
    /// What to put first.
    pub(super) system: Option<&'a str>,
    /// Everything else: the inside of a JSON object without its braces.
    pub(super) fields: String,
    /// The most tokens of its answer, if they say so.
    pub(super) max_tokens: Option<u64>,
}

impl<'a> Usual<'a> {
    /// What `entry` takes from here, as text: other words make another request of the same line.
    pub(super) fn used_by(&self, entry: &Entry<'_>) -> String {
        let model = self.model.unwrap_or_default();
        match &entry.ask {
            Ask::Prompt { .. } => {
                let system = self.system.map(quoted).unwrap_or_default();
                format!("{model}\n{system}\n{}", self.fields)
            }
            Ask::Body(body) if lacks_model(body) => model.to_owned(),
            Ask::Anthropic(params) if lacks_model(params) => model.to_owned(),
            Ask::Body(_) | Ask::Anthropic(_) => String::new(),
        }
    }

    /// The model that `body` names, or the usual one.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn model_of(&self, body: &Members<'_>) -> Result<String, String> {
        match body.get("model") {
            Some(name) => Ok(string(name).ok_or("model must be a string")?.into_owned()),
            None => {
                self.model.map(str::to_owned).ok_or_else(|| "it names no model, and neither does the run".to_owned())
            }
        }
    }

    /// A body for `path` with its model.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) fn named<'b>(&self, path: &str, body: &'b str) -> Result<Named<'b>, String> {
        let members = read_object("body", body)?;
        refuse_stream(&members)?;
        let needs_model = path == CHAT || path == MESSAGES;
        let model = if needs_model || self.model.is_some() || members.get("model").is_some() {
            self.model_of(&members)?
        } else {
            String::new()
        };
        let (body, place) = match members.get("model") {
            Some(named) => (Cow::Borrowed(body), place_of(named, body)),
            None if model.is_empty() => (Cow::Borrowed(body), 0..0),
            None => with_model(&model, body),
        };
        Ok(Named { members, model, body, place })
    }

    /// A shorthand with what is usual. The settings of the line win.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) fn chat<'b>(&self, system: Option<&'b str>, settings: &Members<'_>) -> Result<Chat<'b>, String>
    where
        'a: 'b,
    {
        let own = format!("{{{}}}", self.fields);
        let mut fields = read_object("the run's settings", &own)?;
        fields.0.retain(|(key, _)| settings.get(key).is_none());
        fields.0.extend(settings.0.iter().filter(|(key, _)| key != "model").cloned());
        let (model, max_tokens) = (self.model_of(settings)?, max_tokens(&fields));
        Ok(Chat { model, system: system.or(self.system), fields: fields.join(), max_tokens })
    }

    /// The body of the whole request that `entry` stands for: Anthropic's for `params`, else `OpenAI`'s.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) fn whole<'b>(&self, entry: &'b Entry<'b>) -> Result<Cow<'b, str>, String> {
        match &entry.ask {
            Ask::Body(body) => Ok(self.named(&entry.path, body)?.body),
            Ask::Anthropic(params) => Ok(self.named(&entry.path, params)?.body),
            Ask::Prompt { prompt, system, settings } => {
                let Chat { model, system, fields, .. } = self.chat(system.as_deref(), settings)?;
                let template = ChatTemplate::new(Provider::OpenAi, &model, system, &fields).map_err(told)?;
                let body = template.body(&as_messages(prompt), false).map_err(told)?;
                Ok(Cow::Owned(String::from_utf8_lossy(&body).into_owned()))
            }
        }
    }
}

fn lacks_model(body: &str) -> bool {
    Members::read(body).is_ok_and(|body| body.get("model").is_none())
}

/// Why something of a request is refused.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(super) fn told(error: Error) -> String {
    error.to_string()
}

/// A string is one user message.
pub(super) fn as_messages(prompt: &str) -> Prompt {
    Prompt::Messages(if prompt.starts_with('"') {
        ["[{\"role\":\"user\",\"content\":", prompt, "}]"].concat()
    } else {
        prompt.to_owned()
    })
}

/// The most tokens that an answer may have, where a request says so.
pub(super) fn max_tokens(body: &Members<'_>) -> Option<u64> {
    ["max_completion_tokens", "max_tokens", "max_output_tokens"]
        .into_iter()
        .find_map(|name| body.get(name)?.parse().ok())
}

/// Where a part of `body` stands in it.
fn place_of(part: &str, body: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - body.as_ptr() as usize;
    start..start + part.len()
}

/// `body` with a model before its other members, and where it stands.
fn with_model(name: &str, body: &str) -> (Cow<'static, str>, Range<usize>) {
    const BEFORE: &str = "{\"model\":";
    let (name, rest) = (quoted(name), body.trim_start().get(1..).unwrap_or_default());
    let comma = if rest.trim_start() == "}" { "" } else { "," };
    ([BEFORE, &name, comma, rest].concat().into(), BEFORE.len()..BEFORE.len() + name.len())
}

/// As the wire takes it.
pub(super) fn to_bytes(body: Cow<'_, str>) -> Bytes {
    match body {
        Cow::Borrowed(body) => Bytes::copy_from_slice(body.as_bytes()),
        Cow::Owned(body) => Bytes::from(body),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const USUAL: Usual<'_> = Usual { model: Some("m"), system: Some("s"), fields: r#""seed":7,"n":1"# };

    fn whole(usual: Usual<'_>, line: &str) -> Result<Value, String> {
        let entry = Entry::read(line.as_bytes()).map_err(|bad| bad.reason)?;
        usual.whole(&entry).map(|body| serde_json::from_str(&body).unwrap())
    }

    #[test]
    fn a_shorthand_is_a_whole_request_with_what_is_usual() {
        let user = json!({"role": "user", "content": "hi"});
        let system = |text: &str| json!({"role": "system", "content": text});
        assert_eq!(
            whole(USUAL, r#"{"prompt":"hi","n":2}"#),
            Ok(json!({"model": "m", "messages": [system("s"), user], "seed": 7, "n": 2}))
        );
        assert_eq!(
            whole(USUAL, r#"{"messages":[{"role":"user","content":"hi"}],"system":"own"}"#),
            Ok(json!({"model": "m", "messages": [system("own"), user], "seed": 7, "n": 1}))
        );
        assert_eq!(
            whole(Usual::default(), r#"{"prompt":"hi","model":"o"}"#),
            Ok(json!({"model": "o", "messages": [user]}))
        );
    }

    #[test]
    fn a_body_has_only_a_model_that_it_lacks() {
        for (line, body) in [
            (r#"{"body":{"model":"o","messages":[]}}"#, json!({"model": "o", "messages": []})),
            (r#"{"body":{"messages":[]}}"#, json!({"model": "m", "messages": []})),
            (r#"{"params":{"messages":[]}}"#, json!({"model": "m", "messages": []})),
            (r#"{"url":"/v1/rerank","body":{}}"#, json!({"model": "m"})),
        ] {
            assert_eq!(whole(USUAL, line), Ok(body), "{line}");
        }
        assert_eq!(whole(Usual::default(), r#"{"url":"/v1/rerank","body":{"query":"q"}}"#), Ok(json!({"query": "q"})));
    }

    #[test]
    fn says_why_a_line_cannot_be_sent() {
        for (line, said) in [
            (r#"{"prompt":"a"}"#, "names no model"),
            (r#"{"params":{"messages":[]}}"#, "names no model"),
            (r#"{"prompt":"a","model":7}"#, "model must be a string"),
            (r#"{"prompt":"a","stream":true}"#, "leave \"stream\" out"),
            (r#"{"body":{"model":"m","messages":[],"stream":true}}"#, "leave \"stream\" out"),
        ] {
            assert!(whole(Usual::default(), line).is_err_and(|reason| reason.contains(said)), "{line}");
        }
    }

    #[test]
    fn another_usual_model_makes_another_request_of_every_line_that_names_none() {
        let hash = |line: &str, model| {
            let entry = Entry::read(line.as_bytes()).unwrap();
            entry.hash(&Usual { model: Some(model), ..Usual::default() }.used_by(&entry))
        };
        for form in [r#"{"prompt":"a"}"#, r#"{"body":{"messages":[]}}"#, r#"{"params":{"messages":[]}}"#] {
            assert_ne!(hash(form, "m"), hash(form, "n"), "{form}");
        }
        for form in [r#"{"body":{"model":"o","messages":[]}}"#, r#"{"params":{"model":"o","messages":[]}}"#] {
            assert_eq!(hash(form, "m"), hash(form, "n"), "{form}");
        }
    }
}
