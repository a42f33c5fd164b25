//! From a line to the call that asks it, in the format of the client's provider.
//!
//! A body in the server's own format is not written anew: it goes out as the bytes that stand in the file. Where the formats
//! differ a chat request goes through the same template as the client's own, so a file works with every provider. What a line
//! leaves open (the model; of a shorthand also the system message and the settings) the run's [`Defaults`] say.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use serde_json::Value;

use super::input::{Ask, CHAT, EMBEDDINGS, Entry, Members, read_object, refuse_stream, string};
use super::usual::{Chat, Named, Usual, as_messages, max_tokens, to_bytes, told};
use crate::engine::batch::{ChatCalls, Price, Rates};
use crate::engine::keys::{Keys, Lanes, Route};
use crate::engine::pipeline::Call;
use crate::engine::provider::{ChatTemplate, Format};
use crate::engine::types::{Priority, Prompt};

/// What holds for every line that does not say otherwise.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Where requests go.
    pub keys: Arc<Keys>,
    /// The model of lines that name none.
    pub model: Option<String>,
    /// The system message of shorthands without one.
    pub system: Option<String>,
    /// Settings of shorthands: the inside of a JSON object without its braces.
    pub fields: String,
    /// Headers besides the endpoint's.
    pub headers: Option<Arc<HeaderMap>>,
    /// Parts of the URL's query besides the endpoint's.
    pub query: Arc<[(String, String)]>,
    /// Models that stand in for one that fails.
    pub fallbacks: Vec<String>,
    /// Who goes first.
    pub priority: Priority,
}

impl Defaults {
    /// The model that `entry` names.
    pub(super) fn model_of(entry: &Entry<'_>) -> Option<String> {
        let of_object = |json: &str| string(Members::read(json).ok()?.get("model")?).map(Cow::into_owned);
        match &entry.ask {
            Ask::Prompt { settings, .. } => string(settings.get("model")?).map(Cow::into_owned),
            Ask::Body(body) => of_object(body),
            Ask::Anthropic(params) => of_object(params),
        }
    }

    /// What a line leaves open.
    pub(super) fn usual(&self) -> Usual<'_> {
        Usual { model: self.model.as_deref(), system: self.system.as_deref(), fields: &self.fields }
    }
}

/// What is known of a model.
#[derive(Debug, Clone)]
struct Model {
    lanes: Lanes,
    fallbacks: Arc<[Lanes]>,
    rates: Rates,
}

/// Models that are remembered; a file that names more of them has the rest looked up each time.
const MOST_MODELS: usize = 64;

/// Builds calls.
#[derive(Debug)]
pub(super) struct Calls {
    /// What models cost.
    pub(super) prices: HashMap<String, Price>,
    defaults: Arc<Defaults>,
    models: HashMap<String, Model>,
    /// Of shorthands that say nothing but their prompt.
    plain: Option<(ChatCalls, Rates)>,
}

/// A call and what its tokens cost.
pub(super) type Priced = (Call, Rates);

impl Calls {
    pub(super) fn new(defaults: Arc<Defaults>) -> Self {
        Self { prices: HashMap::new(), defaults, models: HashMap::new(), plain: None }
    }

    /// The call of a line.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) fn build(&mut self, entry: &Entry<'_>) -> Result<Priced, String> {
        match &entry.ask {
            Ask::Prompt { prompt, system, settings } => self.shorthand(prompt, system.as_deref(), settings),
            Ask::Anthropic(params) if self.format() != Format::Anthropic => self.of_anthropic(params),
            Ask::Anthropic(params) => self.body(&entry.path, params),
            Ask::Body(body) if entry.path == CHAT && self.format() != Format::OpenAi => {
                let members = read_object("body", body)?;
                refuse_stream(&members)?;
                self.chat(&members, None)
            }
            Ask::Body(body) => self.body(&entry.path, body),
        }
    }

    fn format(&self) -> Format {
        self.defaults.keys.provider().format()
    }

    /// A body that stays as it is, but for a model that it lacks.
    fn body(&mut self, path: &str, body: &str) -> Result<Priced, String> {
        let Named { members, model, body, place } = self.defaults.usual().named(path, body)?;
        let inputs = if path == EMBEDDINGS { members.get("input").map(count_inputs) } else { None };
        let max_tokens = max_tokens(&members);
        let route = if path == CHAT { Route::Chat } else { Route::Path { method: Method::POST, path: path.into() } };
        let model = self.model(&model);
        let call = Call { body: to_bytes(body), model: place, inputs, max_tokens, ..Call::get(route, model.lanes) };
        Ok((self.addressed(call, model.fallbacks), model.rates))
    }

    /// A shorthand, with the run's settings where it has none.
    fn shorthand(&mut self, prompt: &str, system: Option<&str>, settings: &Members<'_>) -> Result<Priced, String> {
        let prompt = as_messages(prompt);
        if settings.0.is_empty() && system.is_none() {
            if let Some((calls, rates)) = &self.plain {
                return Ok((calls.call(&prompt).map_err(told)?, rates.clone()));
            }
            let (calls, rates) = self.shorthands(None, settings)?;
            let call = calls.call(&prompt).map_err(told)?;
            self.plain = Some((calls, rates.clone()));
            return Ok((call, rates));
        }
        let (calls, rates) = self.shorthands(system, settings)?;
        Ok((calls.call(&prompt).map_err(told)?, rates))
    }

    fn shorthands(&mut self, system: Option<&str>, settings: &Members<'_>) -> Result<(ChatCalls, Rates), String> {
        let defaults = Arc::clone(&self.defaults);
        let chat = defaults.usual().chat(system, settings)?;
        self.chat_calls(&chat)
    }

    /// A chat request in `OpenAI`'s format, for a server that speaks another.
    fn chat(&mut self, body: &Members<'_>, system: Option<&str>) -> Result<Priced, String> {
        let model = self.defaults.usual().model_of(body)?;
        let messages = body.get("messages").ok_or("body has no \"messages\"")?;
        if !messages.starts_with('[') {
            return Err("messages must be a list".to_owned());
        }
        let rest = |key: &str| !matches!(key, "model" | "messages" | "stream" | "stream_options");
        let fields = Members(body.0.iter().filter(|(key, _)| rest(key)).cloned().collect());
        let chat = Chat { model, system, fields: fields.join(), max_tokens: max_tokens(&fields) };
        let (calls, rates) = self.chat_calls(&chat)?;
        Ok((calls.call(&Prompt::Messages(messages.to_owned())).map_err(told)?, rates))
    }

    /// Anthropic's request, for a server that speaks another format.
    fn of_anthropic(&mut self, params: &str) -> Result<Priced, String> {
        let mut members = read_object("params", params)?;
        refuse_stream(&members)?;
        let system = members.get("system").map(text_of_blocks).transpose()?;
        let known = ["model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences"];
        let ignored = ["metadata", "service_tier", "stream"];
        if let Some((key, _)) = members.0.iter().find(|(key, _)| !known.contains(&&**key) && !ignored.contains(&&**key))
        {
            return Err(format!(
                "{key} of Anthropic's format has no counterpart here; use a client with provider=\"anthropic\""
            ));
        }
        members.0.retain(|(key, _)| key != "system" && !ignored.contains(&&**key));
        for (key, _) in &mut members.0 {
            if key == "stop_sequences" {
                *key = "stop".into();
            }
        }
        self.chat(&members, system.as_deref())
    }

    fn chat_calls(&mut self, chat: &Chat<'_>) -> Result<(ChatCalls, Rates), String> {
        let Chat { model, system, fields, max_tokens } = chat;
        let template = ChatTemplate::new(self.defaults.keys.provider(), model, *system, fields).map_err(told)?;
        let known = self.model(model);
        let mut calls = ChatCalls::new(template, known.lanes);
        calls.fallbacks = known.fallbacks;
        calls.headers.clone_from(&self.defaults.headers);
        calls.query = Arc::clone(&self.defaults.query);
        calls.max_tokens = *max_tokens;
        calls.priority = self.defaults.priority;
        Ok((calls, known.rates))
    }

    fn addressed(&self, call: Call, fallbacks: Arc<[Lanes]>) -> Call {
        let Defaults { headers, query, priority, .. } = &*self.defaults;
        Call { fallbacks, headers: headers.clone(), query: Arc::clone(query), priority: *priority, ..call }
    }

    fn model(&mut self, name: &str) -> Model {
        if let Some(known) = self.models.get(name) {
            return known.clone();
        }
        let Defaults { keys, fallbacks, .. } = &*self.defaults;
        let stand_ins = || fallbacks.iter().map(String::as_str).filter(|other| *other != name);
        let model = Model {
            lanes: keys.lanes(name),
            fallbacks: stand_ins().map(|other| keys.lanes(other)).collect(),
            rates: Rates::new(
                [name]
                    .into_iter()
                    .chain(stand_ins())
                    .map(|name| (name.to_owned(), self.prices.get(name).copied()))
                    .collect(),
            ),
        };
        if self.models.len() < MOST_MODELS {
            self.models.insert(name.to_owned(), model.clone());
        }
        model
    }
}

/// How many texts or lists of tokens an `input` holds.
fn count_inputs(input: &str) -> usize {
    match serde_json::from_str::<Vec<&serde_json::value::RawValue>>(input) {
        // Numbers are the tokens of one input.
        Ok(inputs) if inputs.first().is_some_and(|first| first.get().starts_with(['"', '['])) => inputs.len(),
        _ => 1,
    }
}

/// The text of Anthropic's `system`: a string, or blocks of text.
fn text_of_blocks(system: &str) -> Result<String, String> {
    if let Some(text) = string(system) {
        return Ok(text.into_owned());
    }
    let blocks: Vec<Value> = serde_json::from_str(system).map_err(|_| "system must be a string or a list of blocks")?;
    let texts: Option<Vec<&str>> = blocks.iter().map(|block| block.get("text")?.as_str()).collect();
    texts.map(|texts| texts.join("\n\n")).ok_or_else(|| "system must hold blocks of text".to_owned())
}
