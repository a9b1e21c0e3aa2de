//! Reads a TOML table key by key, so that each mistake is named with its line and what was probably meant.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{POLICY_DURATION_MAX_S, POLICY_ENTRIES_MAX, POLICY_TEXT_MAX, PolicyError};
use crate::gate::stats::Margin;

/// A similarity below which nothing is suggested.
const SIMILAR: f64 = 0.75;

/// One table of the file, and which of its keys were read.
pub(super) struct Reader<'a> {
    source: &'a str,
    path: String,
    table: &'a DeTable<'a>,
    known: Vec<&'static str>,
}

/// One value, where it stands and what it is called.
pub(super) struct Item<'a> {
    source: &'a str,
    /// `metric.eval_loss.max`
    path: String,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a str, path: String, table: &'a DeTable<'a>) -> Self {
        Self { source, path, table, known: Vec::new() }
    }

    /// The value of a key that this table may have.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        self.table.get(key).map(|value| self.item(key, value))
    }

    /// All keys that were not taken, as a table whose keys are names of the user's choice.
    pub(super) fn rest(&self) -> Result<Vec<(String, Item<'a>)>, PolicyError> {
        let rest = self.table.iter().filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref()));
        let mut found = Vec::new();
        for (key, value) in rest {
            let item = self.item(key.get_ref(), value);
            let is_odd = key.get_ref().is_empty() || key.get_ref().contains(char::is_control);
            if is_odd || key.get_ref().len() > POLICY_TEXT_MAX || found.len() >= POLICY_ENTRIES_MAX {
                return Err(item.error(format_args!(
                    "is a name that is empty, longer than {POLICY_TEXT_MAX} bytes or not plain text, or one of more than {POLICY_ENTRIES_MAX}"
                ), "shorten it"));
            }
            found.push((key.get_ref().clone().into_owned(), item));
        }
        Ok(found)
    }

    /// Refuses keys that were not taken.
    pub(super) fn finish(self) -> Result<(), PolicyError> {
        let Some(key) = self.table.keys().find(|key| !self.known.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let place = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
        let name = key.get_ref();
        let hint = closest(name, &self.known);
        let hint = hint.map_or_else(
            || format!("known here: {}", self.known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        let line = line(self.source, key.span().start);
        Err(PolicyError(format!("line {line}: unknown key `{}`{place}; {hint}", shown(name))))
    }

    fn item(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        let path = if self.path.is_empty() { shown(key) } else { format!("{}.{}", self.path, shown(key)) };
        Item { source: self.source, path, at: value.span().start, value: value.get_ref() }
    }
}

impl<'a> Item<'a> {
    /// A message about this value.
    pub(super) fn error(&self, what: impl std::fmt::Display, hint: impl std::fmt::Display) -> PolicyError {
        PolicyError(format!("line {}: {} {what}; {hint}", line(self.source, self.at), self.path))
    }

    pub(super) fn table(&self) -> Result<Reader<'a>, PolicyError> {
        let hint = format!("write a [{}] section", self.path);
        let table = self.value.as_table().ok_or_else(|| self.wrong("a table", &hint))?;
        Ok(Reader::new(self.source, self.path.clone(), table))
    }

    pub(super) fn bool(&self) -> Result<bool, PolicyError> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false", "write it without quotes"))
    }

    pub(super) fn text(&self) -> Result<&'a str, PolicyError> {
        let text = self.value.as_str().ok_or_else(|| self.wrong("a text", "put it in quotes"))?;
        if text.is_empty() || text.len() > POLICY_TEXT_MAX {
            return Err(
                self.error(format_args!("is empty or longer than {POLICY_TEXT_MAX} bytes"), "shorten it")
            );
        }
        Ok(text)
    }

    /// One of `all`.
    pub(super) fn choice<T: Copy>(&self, all: &[(&'static str, T)]) -> Result<T, PolicyError> {
        let text = self.text()?;
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let hint = closest(text, &names).map_or_else(
                || format!("use one of: {}", names.join(", ")),
                |near| format!("did you mean \"{near}\"?"),
            );
            self.error(format_args!("is \"{}\", which is not known", shown(text)), hint)
        })
    }

    pub(super) fn items(&self) -> Result<Vec<Item<'a>>, PolicyError> {
        let array = self.value.as_array().ok_or_else(|| self.wrong("a list", "write it in brackets"))?;
        if array.len() > POLICY_ENTRIES_MAX {
            return Err(self.error(format_args!("has more than {POLICY_ENTRIES_MAX} entries"), "shorten it"));
        }
        let item = |value: &'a Spanned<DeValue<'a>>| Item {
            source: self.source,
            path: self.path.clone(),
            at: value.span().start,
            value: value.get_ref(),
        };
        Ok(array.iter().map(item).collect())
    }

    /// A whole number, 1 or more.
    pub(super) fn count(&self) -> Result<u64, PolicyError> {
        let number = self
            .value
            .as_integer()
            .and_then(|n| i64::from_str_radix(&n.as_str().replace('_', ""), n.radix()).ok());
        let number =
            number.ok_or_else(|| self.wrong("a whole number", "write it without quotes or a point"))?;
        u64::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| {
            self.error(format_args!("is {number}, not above 0"), "leave it out to ask for none")
        })
    }

    /// A finite number.
    pub(super) fn number(&self) -> Result<f64, PolicyError> {
        let text = match (self.value.as_float(), self.value.as_integer()) {
            (Some(float), _) => float.as_str().replace('_', ""),
            (_, Some(n)) if n.radix() == 10 => n.as_str().replace('_', ""),
            _ => return Err(self.wrong("a number", "write it without quotes, such as 0.02")),
        };
        let number: f64 = text.parse().map_err(|_| self.wrong("a number", "write it such as 0.02"))?;
        // One zero, so that -0 and 0 are the same policy.
        if number.is_finite() {
            Ok(number + 0.0)
        } else {
            Err(self.error(format_args!("is {text}, not a finite number"), "give a finite number"))
        }
    }

    /// A number of 0 or more, or a text such as "0.5%".
    pub(super) fn margin(&self) -> Result<Margin, PolicyError> {
        let margin = match self.value.as_str() {
            None => Margin::Absolute(self.number()?),
            Some(text) => {
                let share =
                    text.trim().strip_suffix('%').and_then(|percent| percent.trim().parse::<f64>().ok());
                let share = share.filter(|share| share.is_finite());
                let share = share.ok_or_else(|| {
                    self.error(
                        format_args!("is \"{}\", not a percentage", shown(text)),
                        "write a number such as 0.02, or a share of the baseline such as \"0.5%\"",
                    )
                })?;
                Margin::Relative(share / 100.0 + 0.0)
            }
        };
        let (Margin::Absolute(size) | Margin::Relative(size)) = margin;
        if size < 0.0 {
            return Err(self.error("is negative", "give how much worse is accepted, 0 or more"));
        }
        Ok(margin)
    }

    /// A text such as "90s", "10m", "24h", "7d" or "1h30m", in seconds.
    pub(super) fn duration(&self) -> Result<u64, PolicyError> {
        let bad = || self.wrong("a duration", "write it such as \"90s\", \"10m\", \"24h\" or \"7d\"");
        let text = self.value.as_str().ok_or_else(bad)?;
        let (mut total, mut number) = (0u64, String::new());
        for c in text.chars() {
            let unit = match c {
                '0'..='9' if number.len() < 9 => {
                    number.push(c);
                    continue;
                }
                's' => 1,
                'm' => 60,
                'h' => 3_600,
                'd' => 86_400,
                _ => return Err(bad()),
            };
            total = total.saturating_add(number.parse::<u64>().map_err(|_| bad())?.saturating_mul(unit));
            number.clear();
        }
        if !number.is_empty() || total == 0 {
            return Err(bad());
        }
        if total > POLICY_DURATION_MAX_S {
            return Err(self.error(format_args!("is longer than {POLICY_DURATION_MAX_S} s"), "shorten it"));
        }
        Ok(total)
    }

    fn wrong(&self, wanted: &str, hint: &str) -> PolicyError {
        self.error(format_args!("is not {wanted}"), hint)
    }
}

/// The line of a byte offset, from 1.
pub(super) fn line(source: &str, at: usize) -> usize {
    1 + source.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// A name from outside, fit for one line.
pub(super) fn shown(text: &str) -> String {
    text.escape_debug().take(64).collect()
}

/// What was probably meant.
pub(super) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // Names from outside may be long; what is like a known name is not.
    let name: String = name.chars().take(64).collect();
    let scored = known.iter().map(|known| (strsim::jaro_winkler(&name, known), *known));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= SIMILAR).map(|(_, known)| known)
}
