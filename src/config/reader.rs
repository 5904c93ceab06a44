//! Reads typed values out of a [`Table`], notes what is wrong, and goes on with the default.

use std::time::Duration;

use super::bounds::Bounded;
use super::error::{ConfigError, Fault, Place};
use super::forms;
use super::spec::{Table, Value, Written};

/// One table under reading; `errors` is shared by all tables.
pub struct Reader<'a, 'e> {
    pub table: &'a Table,
    pub errors: &'e mut Vec<ConfigError>,
}

impl<'a> Reader<'a, '_> {
    /// Notes an error at `place`.
    pub fn fail(&mut self, place: &Place, fault: Fault) {
        self.errors.push(ConfigError { place: place.clone(), fault });
    }

    /// Unwraps a reading of something written at `place`, or notes why not.
    pub fn accept<T>(&mut self, place: &Place, read: Result<T, Fault>) -> Option<T> {
        read.map_err(|fault| self.fail(place, fault)).ok()
    }

    /// The value of `key` as `read` understands it; `None` when it is not written, or wrong.
    pub fn value<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&'a Value) -> Result<T, Fault>,
    ) -> Option<T> {
        let written = self.table.get(key)?;
        self.accept(&written.place, read(&written.value))
    }

    /// A text; `None` also when it is empty, which is how a layer takes an earlier one's text away.
    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        self.value(key, text).filter(|text| !text.is_empty())
    }

    /// A switch.
    pub fn switch(&mut self, key: &str, default: bool) -> bool {
        self.value(key, switch).unwrap_or(default)
    }

    /// One of the words of `choices`, named together in `names` for the message.
    pub fn choice<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
        names: &'static str,
    ) -> Option<T> {
        self.value(key, |value| {
            let text = text(value)?;
            let known = choices.iter().find(|(name, _)| *name == text);
            let unknown = || Fault::NotOneOf { text: text.to_owned(), choices: names };
            known.map(|(_, choice)| *choice).ok_or_else(unknown)
        })
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, key: &str, bounds: &Bounded<u64>) -> u64 {
        self.bounded(key, bounds, integer, |number| number.to_string())
    }

    /// [`Reader::integer`] as a count.
    pub fn count(&mut self, key: &str, bounds: &Bounded<u64>) -> usize {
        usize::try_from(self.integer(key, bounds)).unwrap_or(usize::MAX)
    }

    /// A size in bytes within bounds.
    pub fn size(&mut self, key: &str, bounds: &Bounded<u64>) -> u64 {
        self.bounded(key, bounds, size, |bytes| quote(&forms::write_size(*bytes)))
    }

    /// A duration within bounds.
    pub fn duration(&mut self, key: &str, bounds: &Bounded<Duration>) -> Duration {
        self.bounded(key, bounds, duration, |span| quote(&forms::write_duration(*span)))
    }

    /// A number within bounds.
    pub fn float(&mut self, key: &str, bounds: &Bounded<f64>) -> f64 {
        self.bounded(key, bounds, float, |number| format!("{number:?}"))
    }

    /// A value within bounds; `write` is for the message.
    fn bounded<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        bounds: &Bounded<T>,
        read: impl FnOnce(&Value) -> Result<T, Fault>,
        write: impl Fn(&T) -> String,
    ) -> T {
        let read = |value: &Value| {
            let number = read(value)?;
            if bounds.admits(&number) {
                return Ok(number);
            }
            let (min, max) = (write(&bounds.min), write(&bounds.max));
            Err(Fault::OutOfBounds { written: write(&number), min, max })
        };
        self.value(key, read).unwrap_or(bounds.default)
    }

    /// The elements of a list, each with its own place; `None` when it is not written.
    pub fn list(&mut self, key: &str) -> Option<&'a [Written]> {
        self.value(key, |value| match value {
            Value::List(items) => Ok(items.as_slice()),
            other => Err(wrong_kind(other, "a list")),
        })
    }

    /// The elements of a list that may not be empty, `what` naming one of them.
    pub fn some_list(&mut self, key: &str, what: &'static str) -> Option<&'a [Written]> {
        let list = self.list(key)?;
        if list.is_empty() {
            let place = self.table.get(key).map(|written| written.place.clone())?;
            self.fail(&place, Fault::Empty { what });
        }
        Some(list)
    }
}

/// The error for a value of another kind.
pub fn wrong_kind(value: &Value, expected: &'static str) -> Fault {
    Fault::WrongKind { found: value.kind(), expected }
}

/// A text in quotation marks.
fn quote(text: &str) -> String {
    format!("\"{text}\"")
}

/// Takes a text.
pub fn text(value: &Value) -> Result<&str, Fault> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(wrong_kind(other, "a text in quotation marks")),
    }
}

/// Takes a switch.
fn switch(value: &Value) -> Result<bool, Fault> {
    match value {
        Value::Switch(switch) => Ok(*switch),
        other => Err(wrong_kind(other, "true or false")),
    }
}

/// Takes a whole number that is not negative.
fn integer(value: &Value) -> Result<u64, Fault> {
    let expected = "a whole number, 0 or more";
    match value {
        Value::Integer(number) => {
            u64::try_from(*number).map_err(|_| Fault::WrongKind { found: "negative", expected })
        }
        other => Err(wrong_kind(other, expected)),
    }
}

/// Takes a number.
fn float(value: &Value) -> Result<f64, Fault> {
    match value {
        Value::Float(number) => Ok(*number),
        Value::Integer(number @ (0 | 1)) => Ok(if *number == 0 { 0.0 } else { 1.0 }),
        other => Err(wrong_kind(other, "a number like 0.01")),
    }
}

/// Takes a size.
fn size(value: &Value) -> Result<u64, Fault> {
    let Value::Text(text) = value else {
        return Err(wrong_kind(value, "a size in quotation marks like \"64MiB\""));
    };
    forms::parse_size(text).ok_or_else(|| Fault::NotA {
        text: text.clone(),
        what: "a size",
        example: "\"64MiB\"",
    })
}

/// Takes a duration.
fn duration(value: &Value) -> Result<Duration, Fault> {
    let Value::Text(text) = value else {
        return Err(wrong_kind(value, "a duration in quotation marks like \"30s\""));
    };
    forms::parse_duration(text).ok_or_else(|| Fault::NotA {
        text: text.clone(),
        what: "a duration",
        example: "\"4500ms\", \"30s\" or \"1d\"",
    })
}
