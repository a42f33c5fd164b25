//! What an answer's tokens cost, where more than one model may give it: an answer says which did.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

use super::control::Price;

/// What the models that may answer a request cost: the one that is asked, and those that stand in for it.
#[derive(Debug, Clone, Default)]
pub struct Rates(Arc<[(String, Option<Price>)]>);

impl Rates {
    /// Of the model that is asked, which is the first, and its stand-ins.
    pub fn new(models: Vec<(String, Option<Price>)>) -> Self {
        Self(models.into())
    }

    /// What the answer of this body cost a token; `None` if that is not known.
    ///
    /// An answer that names none of the models, such as that of a server with names of its own, is priced as the one that was asked.
    pub(super) fn price(&self, body: &[u8]) -> Option<Price> {
        let (_, asked) = self.0.first()?;
        if self.0.len() == 1 {
            return *asked;
        }
        let Ok(Answered { model }) = serde_json::from_slice(body) else { return *asked };
        let exact = self.0.iter().find(|(name, _)| *name == model);
        let found = exact.or_else(|| self.0.iter().find(|(name, _)| is_version(&model, name)));
        found.map_or(*asked, |(_, price)| *price)
    }
}

#[derive(Deserialize)]
struct Answered<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
}

/// Whether `model` is a version of what is called `name`: the same without a vendor before it, and with a date or a number behind it.
fn is_version(model: &str, name: &str) -> bool {
    let plain = |name: &str| name.rsplit('/').next().map(str::to_owned).unwrap_or_default();
    let (model, name) = (plain(model), plain(name));
    let name = name.strip_suffix("-latest").unwrap_or(&name);
    model.strip_prefix(name).is_some_and(|version| {
        version.is_empty()
            || version == "-latest"
            || version.strip_prefix(['-', '@']).is_some_and(|version| {
                // A date has at least a year and a month: `gpt-4-32k` is no version of `gpt-4`, nor is `x-7`.
                version.len() >= 4 && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(input: f64) -> Price {
        Price { input, output: 0.0 }
    }

    fn of(rates: &Rates, model: &str) -> Option<Price> {
        rates.price(format!(r#"{{"id":"a","model":"{model}","choices":[{{"model":7}}]}}"#).as_bytes())
    }

    #[test]
    fn an_answer_costs_what_the_model_does_that_gave_it() {
        let rates = Rates::new(vec![
            ("gpt-4o".to_owned(), Some(price(2.0))),
            ("gpt-4o-mini".to_owned(), Some(price(1.0))),
            ("mistral-large-latest".to_owned(), Some(price(3.0))),
            ("local".to_owned(), None),
        ]);
        for (model, expected) in [
            ("gpt-4o", Some(price(2.0))),
            ("gpt-4o-2024-08-06", Some(price(2.0))),
            ("gpt-4o-mini-2024-07-18", Some(price(1.0))),
            ("openai/gpt-4o-mini", Some(price(1.0))),
            ("mistral-large-2512", Some(price(3.0))),
            ("local", None),
            ("my-deployment", Some(price(2.0))),
        ] {
            assert_eq!(of(&rates, model), expected, "{model}");
        }
        assert_eq!(rates.price(b"no JSON"), Some(price(2.0)));
    }

    #[test]
    fn a_model_without_stand_ins_has_its_price_whatever_the_answer_calls_it() {
        assert_eq!(of(&Rates::new(vec![("m".to_owned(), Some(price(1.0)))]), "other"), Some(price(1.0)));
        assert_eq!(of(&Rates::default(), "m"), None);
    }
}
