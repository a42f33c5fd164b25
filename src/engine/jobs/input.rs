//! One line of the input: which of the forms it has, and what it asks for.
//!
//! The native form is `OpenAI`'s Batch line, `{"custom_id","method","url","body"}`, whose body goes on the wire as it stands. The
//! others are what people have in their files: Mistral's batch line (a body without a url), Anthropic's (`params`), a whole
//! request on its own (it has a `model`), and the shorthands `{"messages": [...]}` and `{"prompt": "..."}`. Nothing is parsed
//! further than it is needed, and what a line carries along (`metadata`, and keys that are no part of the request) comes back
//! with its answer.
//!
//! A line chooses what is asked, never whom: a url of its own host, a key or headers make it a bad line.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::hash::RequestHash;
use crate::engine::config;
use crate::engine::provider::openai::quoted;

/// The path of chat requests.
pub(super) const CHAT: &str = "chat/completions";
/// The path of embeddings.
pub(super) const EMBEDDINGS: &str = "embeddings";
/// Anthropic's path of chat requests.
pub(super) const MESSAGES: &str = "messages";

/// What would change where a request goes, or as whom.
const FORBIDDEN: [&str; 9] = [
    "base_url",
    "api_base",
    "api_key",
    "api-key",
    "x-api-key",
    "authorization",
    "headers",
    "extra_headers",
    "default_headers",
];

/// Fields of a request that a shorthand may have beside its prompt; other keys are the user's own and are echoed.
const SETTINGS: [&str; 49] = [
    "audio",
    "best_of",
    "chat_template_kwargs",
    "frequency_penalty",
    "function_call",
    "functions",
    "guided_choice",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "min_tokens",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "random_seed",
    "reasoning",
    "reasoning_budget",
    "reasoning_effort",
    "reasoning_format",
    "repetition_penalty",
    "response_format",
    "safe_prompt",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "stop_sequences",
    "store",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_a",
    "top_k",
    "top_logprobs",
    "top_p",
    "verbosity",
    "web_search_options",
];

/// Why a line is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadLine {
    /// What it is called in the output: what it calls itself, if that can be read.
    pub(super) custom_id: Option<String>,
    /// What is wrong with it.
    pub(super) reason: String,
}

/// A member of a JSON object, unread.
pub(super) type Member<'a> = (Cow<'a, str>, &'a str);

/// A JSON object as its members, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Members<'a>(pub(super) Vec<Member<'a>>);

impl<'a> Members<'a> {
    /// The members of the object that `json` is.
    pub(super) fn read(json: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// A member as it stands. Of two of the same name the last one counts, as it does for servers; `null` is none.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let member = self.0.iter().rev().find(|(key, _)| key == name);
        member.map(|(_, value)| *value).filter(|value| *value != "null")
    }

    /// A string, unquoted; an error if it is something else.
    fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, String> {
        let text = |value| string(value).ok_or_else(|| format!("{name} must be a string"));
        self.get(name).map(text).transpose()
    }

    /// The object's inside without its braces.
    pub(super) fn join(&self) -> String {
        let mut joined = String::with_capacity(self.0.iter().map(|(key, value)| key.len() + value.len() + 4).sum());
        for (key, value) in &self.0 {
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(&quoted(key));
            joined.push(':');
            joined.push_str(value);
        }
        joined
    }
}

/// A JSON string, unquoted.
pub(super) fn string(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(json).ok().map(|text| text.0)
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((key, value.get()));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// What a line asks for.
#[derive(Debug, Clone)]
pub(super) enum Ask<'a> {
    /// A body, sent as it stands.
    Body(Cow<'a, str>),
    /// A prompt of one user message, or a list of messages; the run's defaults hold where the line says nothing.
    Prompt {
        /// A JSON string, or a JSON array of messages.
        prompt: &'a str,
        /// In place of the run's.
        system: Option<Cow<'a, str>>,
        /// Fields besides.
        settings: Members<'a>,
    },
    /// Anthropic's body.
    Anthropic(&'a str),
}

/// A request as a line has it.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    /// What the line calls itself.
    pub(super) custom_id: Option<Cow<'a, str>>,
    /// Below the base URL, without a version before it.
    pub(super) path: Cow<'a, str>,
    /// What is sent there.
    pub(super) ask: Ask<'a>,
    /// What comes back with the answer, as a JSON object.
    pub(super) metadata: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn read(line: &'a [u8]) -> Result<Self, BadLine> {
        let unread = |reason: String| BadLine { custom_id: None, reason };
        let text = std::str::from_utf8(line).map_err(|error| unread(format!("it is not UTF-8 ({error})")))?;
        let members = Members::read(text).map_err(|error| unread(format!("it is no JSON object ({error})")))?;
        let custom_id = members.text("custom_id").map_err(unread)?;
        if custom_id.as_deref() == Some("") {
            return Err(unread("custom_id must not be empty".to_owned()));
        }
        Self::of(&members, custom_id.clone())
            .map_err(|reason| BadLine { custom_id: custom_id.map(Cow::into_owned), reason })
    }

    fn of(members: &Members<'a>, custom_id: Option<Cow<'a, str>>) -> Result<Self, String> {
        if let Some((key, _)) = members.0.iter().find(|(key, _)| is_forbidden(key)) {
            return Err(format!("a line may not set {key:?}: where requests go, and as whom, is the client's to say"));
        }
        let entry = |path: Cow<'a, str>, ask, rest| Ok(Self { custom_id, path, ask, metadata: metadata(rest)? });
        let rest = |known: &[&str]| -> Vec<Member<'a>> {
            members.0.iter().filter(|(key, _)| key != "custom_id" && !known.contains(&&**key)).cloned().collect()
        };
        if let Some(body) = members.get("body") {
            if members.text("method")?.is_some_and(|method| method != "POST") {
                return Err("method must be \"POST\"".to_owned());
            }
            let path = match members.text("url")? {
                Some(url) => path(&url)?,
                None => Cow::Borrowed(path_of(&read_object("body", body)?)?),
            };
            return entry(path, Ask::Body(Cow::Borrowed(body)), rest(&["method", "url", "body"]));
        }
        if let Some(params) = members.get("params") {
            return entry(Cow::Borrowed(MESSAGES), Ask::Anthropic(params), rest(&["params"]));
        }
        let has_model = members.get("model").is_some();
        let (messages, prompt) = (members.get("messages"), members.get("prompt"));
        if let Some(prompt) = prompt.filter(|_| messages.is_none()).or(messages.filter(|_| !has_model)) {
            if !is_prompt(prompt) {
                return Err("the prompt must be a string or a list of messages".to_owned());
            }
            if members.get("url").is_some() {
                return Err("a line with a url needs its request as \"body\"".to_owned());
            }
            refuse_stream(members)?;
            let system = members.text("system")?;
            let (settings, others): (Vec<_>, Vec<_>) =
                rest(&["prompt", "messages", "system", "stream"]).into_iter().partition(|(key, _)| is_setting(key));
            let ask = Ask::Prompt { prompt, system, settings: Members(settings) };
            return entry(Cow::Borrowed(CHAT), ask, others);
        }
        if !has_model {
            return Err("it has none of \"body\", \"params\", \"messages\", \"prompt\" and \"model\"".to_owned());
        }
        let path = match members.text("url")? {
            Some(url) => path(&url)?,
            None => Cow::Borrowed(path_of(members)?),
        };
        let fields = Members(rest(&["metadata", "method", "url"]));
        let metadata = members.0.iter().filter(|(key, _)| key == "metadata").cloned().collect();
        entry(path, Ask::Body(Cow::Owned(format!("{{{}}}", fields.join()))), metadata)
    }

    /// Says which request it is, with the run's `defaults` where it uses them.
    pub(super) fn hash(&self, defaults: &str) -> RequestHash {
        match &self.ask {
            Ask::Body(body) => RequestHash::of(&self.path, body, defaults),
            Ask::Anthropic(params) => RequestHash::of(&self.path, params, defaults),
            Ask::Prompt { prompt, system, settings } => {
                let system = system.as_deref().map_or_else(String::new, quoted);
                let request = [prompt, "\n", system.as_str(), "\n", &settings.join()].concat();
                RequestHash::of(&self.path, &request, defaults)
            }
        }
    }
}

/// Refuses a request for an answer in parts.
pub(super) fn refuse_stream(body: &Members<'_>) -> Result<(), String> {
    match body.get("stream") {
        None | Some("false") => Ok(()),
        Some(_) => Err("a line's answer is whole: leave \"stream\" out".to_owned()),
    }
}

/// The members of what should be an object.
pub(super) fn read_object<'a>(name: &str, json: &'a str) -> Result<Members<'a>, String> {
    Members::read(json).map_err(|_| format!("{name} must be a JSON object"))
}

fn is_forbidden(key: &str) -> bool {
    FORBIDDEN.iter().any(|name| key.eq_ignore_ascii_case(name))
}

fn is_setting(key: &str) -> bool {
    SETTINGS.binary_search(&key).is_ok()
}

fn is_prompt(json: &str) -> bool {
    json.starts_with('"') || (json.starts_with('[') && json.trim_start_matches(['[', ' ']) != "]")
}

/// What a whole request without a url is sent to.
fn path_of(body: &Members<'_>) -> Result<&'static str, String> {
    if body.get("messages").is_some() {
        Ok(CHAT)
    } else if body.get("input").is_some() {
        Ok(EMBEDDINGS)
    } else if body.get("prompt").is_some() {
        Ok("completions")
    } else {
        Err("it has no \"url\", and neither \"messages\" nor \"input\" that would tell what it asks for".to_owned())
    }
}

/// The path of a line's url. `/v1` is the client's base URL's to say.
fn path<'a>(url: &Cow<'a, str>) -> Result<Cow<'a, str>, String> {
    let wrong = || format!("url must be a path such as \"/v1/{CHAT}\", not {url:?}: a line does not choose the server");
    config::path(url).map_err(|_| wrong())?;
    if url.split(['/', '?', '\\']).any(|part| part == "..") {
        return Err(wrong());
    }
    let cut = |url: &str| {
        let path = url.trim_start_matches('/');
        url.len() - path.strip_prefix("v1/").unwrap_or(path).len()
    };
    Ok(match url {
        Cow::Borrowed(url) => Cow::Borrowed(url.get(cut(url)..).unwrap_or_default()),
        Cow::Owned(url) => Cow::Owned(url.get(cut(url)..).unwrap_or_default().to_owned()),
    })
}

/// What is echoed: the line's own metadata with its other keys beside.
fn metadata(mut rest: Vec<Member<'_>>) -> Result<Option<Cow<'_, str>>, String> {
    if let [(key, value)] = rest.as_slice()
        && key == "metadata"
    {
        return Ok(Some(Cow::Borrowed(*value)).filter(|value| value != "null"));
    }
    if rest.is_empty() {
        return Ok(None);
    }
    if let Some(place) = rest.iter().position(|(key, _)| key == "metadata") {
        let (_, own) = rest.remove(place);
        if own != "null" {
            let own = read_object("metadata beside other keys", own)?;
            rest.splice(0..0, own.0);
        }
    }
    Ok(Some(Cow::Owned(format!("{{{}}}", Members(rest).join()))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(line: &str) -> Entry<'_> {
        Entry::read(line.as_bytes()).unwrap()
    }

    fn reason(line: &str) -> String {
        Entry::read(line.as_bytes()).unwrap_err().reason
    }

    fn body<'a>(entry: &'a Entry<'_>) -> &'a str {
        match &entry.ask {
            Ask::Body(body) => body,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_lines_body_stays_as_it_stands_and_its_url_tells_the_path() {
        let entry = read(
            r#"{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model":  "m","input":[ 1 ]}, "row": 7}"#,
        );
        assert_eq!(entry.custom_id.as_deref(), Some("a"));
        assert_eq!((&*entry.path, body(&entry)), ("embeddings", r#"{"model":  "m","input":[ 1 ]}"#));
        assert_eq!(entry.metadata.as_deref(), Some(r#"{"row":7}"#));
        for (url, path) in [("/v1/chat/completions", CHAT), ("v1/chat/completions", CHAT), ("/rerank", "rerank")] {
            assert_eq!(read(&json!({"url": url, "body": {}}).to_string()).path, path);
        }
    }

    #[test]
    fn other_vendors_lines_and_whole_requests_are_known() {
        let mistral = read(r#"{"custom_id":"0","body":{"max_tokens":9,"messages":[{"role":"user","content":"x"}]}}"#);
        assert_eq!(mistral.path, CHAT);
        let anthropic = read(r#"{"custom_id":"0","params":{"model":"c","max_tokens":9,"messages":[]}}"#);
        assert_eq!(anthropic.path, MESSAGES);
        assert!(matches!(anthropic.ask, Ask::Anthropic(r#"{"model":"c","max_tokens":9,"messages":[]}"#)));
        let cookbook = read(r#"{"model":"m","input":"text","x": 1,"metadata":{"row": 3}}"#);
        assert_eq!((&*cookbook.path, body(&cookbook)), (EMBEDDINGS, r#"{"model":"m","input":"text","x":1}"#));
        assert_eq!(cookbook.metadata.as_deref(), Some(r#"{"row": 3}"#));
        let chat = read(r#"{"custom_id":"a","model":"m","messages":[{"role":"user","content":"x"}]}"#);
        assert_eq!((&*chat.path, body(&chat)), (CHAT, r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#));
    }

    #[test]
    fn a_shorthand_keeps_its_settings_apart_from_the_users_own_keys() {
        let line = r#"{"prompt":"a\nb","system":"s","temperature":0.5,"id":7,"metadata":{"k":1}}"#;
        let entry = read(line);
        let Ask::Prompt { prompt, system, settings } = &entry.ask else { panic!("{entry:?}") };
        assert_eq!((*prompt, system.as_deref()), (r#""a\nb""#, Some("s")));
        assert_eq!(settings.join(), r#""temperature":0.5"#);
        assert_eq!(entry.metadata.as_deref(), Some(r#"{"k":1,"id":7}"#));
        let messages = read(r#"{"messages":[{"role":"user","content":"x"}]}"#);
        assert!(matches!(messages.ask, Ask::Prompt { prompt: r#"[{"role":"user","content":"x"}]"#, .. }));
        assert!(SETTINGS.is_sorted());
    }

    #[test]
    fn says_what_is_wrong_with_a_line() {
        for (line, said) in [
            ("nonsense", "no JSON object"),
            ("[1]", "no JSON object"),
            ("{\"prompt\":\"a\"} x", "no JSON object"),
            ("{}", "it has none of"),
            (r#"{"custom_id":1,"prompt":"a"}"#, "custom_id must be a string"),
            (r#"{"custom_id":"","prompt":"a"}"#, "custom_id must not be empty"),
            (r#"{"method":"GET","url":"/v1/models","body":{}}"#, "method must be"),
            (r#"{"body":{}}"#, "that would tell what it asks for"),
            (r#"{"body":[]}"#, "body must be a JSON object"),
            (r#"{"prompt":7}"#, "a string or a list of messages"),
            (r#"{"prompt":[ ]}"#, "a string or a list of messages"),
            (r#"{"prompt":"a","metadata":"x","row":1}"#, "metadata beside other keys"),
        ] {
            assert!(reason(line).contains(said), "{line}: {}", reason(line));
        }
        assert!(Entry::read(b"{\"prompt\":\"\xff\"}").unwrap_err().reason.contains("UTF-8"));
        let known = Entry::read(br#"{"custom_id":"a","url":7,"body":{}}"#).unwrap_err();
        assert_eq!(known.custom_id.as_deref(), Some("a"));
    }

    #[test]
    fn a_line_chooses_neither_server_nor_key() {
        for (line, said) in [
            (r#"{"url":"/v1/x","body":{},"base_url":"http://evil"}"#, "may not set \"base_url\""),
            (r#"{"prompt":"a","API_KEY":"sk"}"#, "may not set \"API_KEY\""),
            (r#"{"url":"https://evil/v1/chat/completions","body":{}}"#, "does not choose the server"),
            (r#"{"url":"//evil/x","body":{}}"#, "does not choose the server"),
            (r#"{"url":"/v1/../x","body":{}}"#, "does not choose the server"),
            (r#"{"url":"/v1/\t../x","body":{}}"#, "does not choose the server"),
            (r#"{"url":"..\n/x","body":{}}"#, "does not choose the server"),
            (r#"{"url":"","body":{}}"#, "does not choose the server"),
        ] {
            assert!(reason(line).contains(said), "{line}: {}", reason(line));
        }
    }

    #[test]
    fn a_key_is_never_shown_by_the_reason() {
        assert!(!reason(r#"{"prompt":"a","api_key":"sk-secret-1"}"#).contains("secret"));
    }

    #[test]
    fn the_same_request_in_another_layout_has_the_same_hash() {
        let hash = |line: &str| read(line).hash("");
        assert_eq!(
            hash(r#"{"custom_id":"a","url":"/v1/x","body":{"model": "m", "a": [1, 2]}}"#),
            hash(r#"{"body":{"model":"m","a":[1,2]},"url":"/v1/x","row":1}"#)
        );
        assert_ne!(hash(r#"{"prompt":"a"}"#), hash(r#"{"prompt":"a","system":"s"}"#));
        assert_ne!(hash(r#"{"prompt":"a"}"#), hash(r#"{"prompt":"a","temperature":0}"#));
        assert_ne!(read(r#"{"prompt":"a"}"#).hash("m"), read(r#"{"prompt":"a"}"#).hash("n"));
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Entry::read(&line);
        }

        #[test]
        fn any_prompt_and_id_come_through(prompt in any::<String>(), id in "\\PC+", own in any::<String>()) {
            let line = json!({"custom_id": id, "prompt": prompt, "own": own}).to_string();
            let entry = read(&line);
            prop_assert_eq!(entry.custom_id.as_deref(), Some(&*id));
            let Ask::Prompt { prompt: sent, .. } = &entry.ask else { panic!() };
            prop_assert_eq!(string(sent).unwrap(), prompt);
            let echoed: Value = serde_json::from_str(entry.metadata.as_deref().unwrap()).unwrap();
            prop_assert_eq!(echoed, json!({"own": own}));
        }
    }
}
