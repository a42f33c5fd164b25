//! `OpenAI`'s request fields as Anthropic's.

use serde_json::{Value, json};

use super::super::fields::Fields;
use crate::engine::error::Error;

/// The longest answer unless the user says, since the API insists on a number.
const DEFAULT_MAX_TOKENS: u64 = 4096;

/// Without a counterpart, and the answer would be another.
const REFUSED: [&str; 11] = [
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "store",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "verbosity",
];

/// Without a counterpart, and the answer is the same. (A stream always tells its usage.)
const FORGOTTEN: [&str; 4] = ["stream_options", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"];

/// A request's fields, ready to be sent.
pub(super) struct Settings {
    /// Strings and blocks.
    pub(super) system: Vec<Value>,
    /// `,"name":value` for each.
    pub(super) fields: String,
    /// The longest answer.
    pub(super) max_tokens: Option<u64>,
}

pub(super) fn read(mut fields: Fields, system: Option<&str>) -> Result<Settings, Error> {
    fields.refuse_several_answers()?;
    fields.refuse_functions()?;
    if fields.get("seed").is_some() {
        return Err(fields.no_counterpart("seed"));
    }
    fields.refuse(&REFUSED)?;
    fields.forget(&FORGOTTEN);
    let max_tokens = fields.take_max_tokens().unwrap_or_else(|| (DEFAULT_MAX_TOKENS + thinking_budget(&fields)).into());
    let max = max_tokens.as_u64();
    fields.set("max_tokens", max_tokens);
    stop(&mut fields)?;
    tools(&mut fields)?;
    tool_choice(&mut fields)?;
    response_format(&mut fields)?;
    effort(&mut fields)?;
    user(&mut fields)?;
    service_tier(&mut fields);
    let mut parts: Vec<Value> = system.map(Value::from).into_iter().collect();
    match fields.take("system") {
        Some(Value::Array(blocks)) => parts.extend(blocks),
        Some(text) => parts.push(text),
        None => {}
    }
    Ok(Settings { system: parts, fields: fields.to_text(), max_tokens: max })
}

/// What the answer spends on thinking, which `max_tokens` counts, too.
fn thinking_budget(fields: &Fields) -> u64 {
    fields.get("thinking").and_then(|thinking| thinking.get("budget_tokens")?.as_u64()).unwrap_or(0)
}

fn stop(fields: &mut Fields) -> Result<(), Error> {
    let sequences = match fields.take("stop") {
        None => return Ok(()),
        Some(Value::Array(sequences)) => sequences,
        Some(one) => vec![one],
    };
    if fields.get("stop_sequences").is_some() {
        return Err(Error::configuration("stop= and stop_sequences= say the same: give one"));
    }
    if !sequences.is_empty() {
        fields.set("stop_sequences", sequences);
    }
    Ok(())
}

fn tools(fields: &mut Fields) -> Result<(), Error> {
    match fields.take("tools") {
        Some(Value::Array(tools)) => {
            let tools = tools.into_iter().enumerate().map(|(place, tool)| self::tool(place, tool));
            fields.set("tools", tools.collect::<Result<Vec<_>, _>>()?);
        }
        Some(_) => return Err(Error::configuration("tools must be a list")),
        None => {}
    }
    Ok(())
}

/// A function as a tool. What is none of `OpenAI`'s is the vendor's own and stays.
fn tool(place: usize, mut tool: Value) -> Result<Value, Error> {
    if tool.get("custom").is_some() {
        return Err(Error::configuration(format!(
            "tools[{place}] is a custom tool, which Anthropic's API does not have; make it a function"
        )));
    }
    let Some(function) = tool.get_mut("function").map(Value::take) else { return Ok(tool) };
    let mut made = json!({"name": function.get("name")});
    let Some(object) = made.as_object_mut() else { return Ok(tool) };
    if let Some(description) = function.get("description").filter(|text| !text.is_null()) {
        object.insert("description".into(), description.clone());
    }
    let schema = function.get("parameters").filter(|schema| !schema.is_null()).cloned();
    object.insert("input_schema".into(), schema.unwrap_or_else(|| json!({"type": "object", "properties": {}})));
    if function.get("strict") == Some(&Value::Bool(true)) {
        object.insert("strict".into(), true.into());
    }
    // Such as `cache_control`.
    let own = tool.as_object().into_iter().flatten().filter(|(name, _)| *name != "type" && *name != "function");
    object.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    Ok(made)
}

fn tool_choice(fields: &mut Fields) -> Result<(), Error> {
    let mut choice = match fields.take("tool_choice") {
        None => None,
        Some(Value::String(word)) => Some(match word.as_str() {
            "auto" | "none" | "any" => json!({"type": word}),
            "required" => json!({"type": "any"}),
            _ => {
                return Err(Error::configuration(format!(
                    "tool_choice={word:?} has no counterpart in Anthropic's API"
                )));
            }
        }),
        Some(choice) => match (choice.get("type").and_then(Value::as_str), choice.get("function")) {
            (_, Some(function)) => Some(json!({"type": "tool", "name": function.get("name")})),
            (Some("auto" | "any" | "tool" | "none"), None) => Some(choice),
            _ => {
                return Err(Error::configuration(format!(
                    "tool_choice={choice} has no counterpart in Anthropic's API"
                )));
            }
        },
    };
    let has_tools = fields.get("tools").is_some();
    if fields.take("parallel_tool_calls") == Some(Value::Bool(false)) && has_tools {
        let choice = choice.get_or_insert_with(|| json!({"type": "auto"}));
        if let Some(choice) = choice.as_object_mut().filter(|choice| choice.get("type") != Some(&"none".into())) {
            choice.insert("disable_parallel_tool_use".into(), true.into());
        }
    }
    if let Some(choice) = choice {
        fields.set("tool_choice", choice);
    }
    Ok(())
}

fn response_format(fields: &mut Fields) -> Result<(), Error> {
    let Some(format) = fields.take("response_format") else { return Ok(()) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(()),
        Some("json_schema") => {
            // Anthropic's own form has the schema at the top.
            let schema = format.get("json_schema").unwrap_or(&format).get("schema").cloned();
            let schema = schema.ok_or_else(|| Error::configuration("response_format has no schema"))?;
            let format = json!({"type": "json_schema", "schema": schema});
            fields.set_in("output_config", "format", format, "response_format")
        }
        _ => Err(Error::configuration(format!(
            "response_format={format} has no counterpart in Anthropic's API; give a json_schema"
        ))),
    }
}

fn effort(fields: &mut Fields) -> Result<(), Error> {
    let Some(effort) = fields.take("reasoning_effort") else { return Ok(()) };
    match effort.as_str() {
        Some("none") => {
            if fields.get("thinking").is_some() {
                return Err(Error::configuration("reasoning_effort=\"none\" and thinking= say the same: give one"));
            }
            fields.set("thinking", json!({"type": "disabled"}));
            Ok(())
        }
        // The least that there is.
        Some("minimal") => fields.set_in("output_config", "effort", "low".into(), "reasoning_effort"),
        _ => fields.set_in("output_config", "effort", effort, "reasoning_effort"),
    }
}

fn user(fields: &mut Fields) -> Result<(), Error> {
    if let Some(metadata) = fields.get("metadata").and_then(Value::as_object)
        && let Some(other) = metadata.keys().find(|name| *name != "user_id")
    {
        return Err(Error::configuration(format!(
            "metadata has {other:?}, and Anthropic's API takes nothing there but \"user_id\""
        )));
    }
    let (user, safety) = (fields.take("user"), fields.take("safety_identifier"));
    match user.or(safety) {
        Some(user) => fields.set_in("metadata", "user_id", user, "user"),
        None => Ok(()),
    }
}

/// `OpenAI`'s default tier is what Anthropic calls standard; `auto` is the same with both.
fn service_tier(fields: &mut Fields) {
    if fields.get("service_tier") == Some(&"default".into()) {
        fields.set("service_tier", "standard_only");
    }
}
