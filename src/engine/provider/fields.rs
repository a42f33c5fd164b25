//! The fields of a chat request, for the providers that call some of them otherwise or have no such thing.
//!
//! Nothing that would change the answer is dropped in silence: a field without a counterpart is refused by its name, unless its
//! value asks for nothing (`logprobs=False`). What only `OpenAI`'s bookkeeping knows (`prompt_cache_key`) may go.

use serde_json::{Map, Value};

use crate::engine::error::Error;

/// A request's fields besides its model and messages.
pub(super) struct Fields {
    /// The provider's name as texts have it.
    vendor: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    /// The inside of a JSON object without its braces.
    pub(super) fn parse(vendor: &'static str, fields: &str) -> Result<Self, Error> {
        let mut map: Map<String, Value> = serde_json::from_str(&format!("{{{fields}}}"))
            .map_err(|error| Error::internal("the request's fields are not JSON").with_source(error))?;
        // A field that is null is not set.
        map.retain(|_, value| !value.is_null());
        Ok(Self { vendor, map })
    }

    /// Takes a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    /// A field as it stands.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// Sets a field.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.map.insert(name.to_owned(), value.into());
    }

    /// The object of that name, made if there is none, for one more member.
    ///
    /// # Errors
    /// A configuration error if it is not an object, or has that member.
    pub(super) fn set_in(&mut self, name: &str, member: &str, value: Value, from: &str) -> Result<(), Error> {
        let object = self.map.entry(name).or_insert_with(|| Value::Object(Map::new()));
        match object.as_object_mut() {
            Some(object) if !object.contains_key(member) => drop(object.insert(member.to_owned(), value)),
            Some(_) => {
                return Err(Error::configuration(format!("{from}= and {name}[{member:?}] say the same: give one")));
            }
            None => return Err(Error::configuration(format!("{name} must be an object, since {from}= goes into it"))),
        }
        Ok(())
    }

    /// Drops what does not change the answer.
    pub(super) fn forget(&mut self, names: &[&str]) {
        self.map.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// Refuses fields without a counterpart, unless they ask for nothing.
    ///
    /// # Errors
    /// A configuration error that names the first of them.
    pub(super) fn refuse(&mut self, names: &[&str]) -> Result<(), Error> {
        for name in names {
            if self.take(name).is_some_and(|value| !asks_for_nothing(&value)) {
                return Err(self.no_counterpart(name));
            }
        }
        Ok(())
    }

    /// The error of a field without a counterpart.
    pub(super) fn no_counterpart(&self, name: &str) -> Error {
        let vendor = self.vendor;
        Error::configuration(format!(
            "{name}= has no counterpart in {vendor} API, and the answer would be another; leave it out"
        ))
    }

    /// At most one answer for each request.
    pub(super) fn refuse_several_answers(&mut self) -> Result<(), Error> {
        match self.take("n") {
            Some(count) if count != 1 => Err(Error::configuration(format!(
                "n={count}: {} API gives one answer for each request; ask several times",
                self.vendor
            ))),
            _ => Ok(()),
        }
    }

    /// What the two older names of a thing are replaced by.
    pub(super) fn refuse_functions(&self) -> Result<(), Error> {
        for (old, new) in [("functions", "tools"), ("function_call", "tool_choice")] {
            if self.get(old).is_some() {
                return Err(Error::configuration(format!("{old}= is {new}= in {} API: give that", self.vendor)));
            }
        }
        Ok(())
    }

    /// The longest answer in tokens, by its newer or its older name.
    pub(super) fn take_max_tokens(&mut self) -> Option<Value> {
        let older = self.take("max_tokens");
        self.take("max_completion_tokens").or(older)
    }

    /// `,"name":value` for each.
    pub(super) fn to_text(&self) -> String {
        let text = Value::Object(self.map.clone()).to_string();
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(inside) if !inside.is_empty() => format!(",{inside}"),
            _ => String::new(),
        }
    }
}

/// Whether a value of a field is as good as none.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty() || *items == ["text"],
        Value::Bool(true) | Value::String(_) => false,
    }
}
