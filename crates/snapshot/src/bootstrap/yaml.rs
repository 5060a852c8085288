//! YAML to JSON values, within limits; and the line of a field, for errors.
use std::collections::HashMap;

use lateen_proto::json::Step;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Map, Value};

/// Nesting of mappings and lists.
const MAX_DEPTH: usize = 200;
/// Values that aliases may copy: a few lines can otherwise stand for terabytes.
const MAX_COPIES: usize = 200_000;

/// A file that is not YAML, or too much of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct NotYaml {
    pub line: usize,
    pub reason: String,
}

/// Reads the only document of `text`.
///
/// # Errors
/// When it is not YAML, nested too deep, or its aliases stand for too much.
pub fn read(text: &str) -> Result<Value, NotYaml> {
    let mut builder = Builder::default();
    events(text, |event, span| builder.event(event, span))?;
    Ok(builder.root.unwrap_or(Value::Null))
}

/// The line at which the value at `path` begins, or the deepest one on the way that there is.
pub(super) fn line_of(text: &str, path: &[Step]) -> Option<usize> {
    lines_of(text, &[path]).pop().flatten()
}

/// [`line_of`] for many paths, which is as much work as for one.
pub(super) fn lines_of(text: &str, paths: &[impl AsRef<[Step]>]) -> Vec<Option<usize>> {
    let mut finder = Finder::new(paths);
    // What cannot be read on ends the search: the best so far is as good as it gets.
    let _ = events(text, |event, span| {
        finder.event(&event, span);
        Ok(())
    });
    paths.iter().map(|path| finder.deepest(path.as_ref())).collect()
}

fn events<'t>(text: &'t str, mut each: impl FnMut(Event<'t>, Span) -> Result<(), NotYaml>) -> Result<(), NotYaml> {
    let mut parser: Parser<'t, StrInput<'t>> = Parser::new_from_str(text);
    let mut documents = 0;
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|e| NotYaml { line: e.marker().line(), reason: e.info().to_owned() })?;
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                return Err(NotYaml { line: span.start.line(), reason: "a second document; a bootstrap has one".to_owned() });
            }
        }
        each(event, span)?;
    }
    Ok(())
}

enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Builder {
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Value>,
    copies: usize,
    root: Option<Value>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), NotYaml> {
        let fail = |reason: &str| Err(NotYaml { line: span.start.line(), reason: reason.to_owned() });
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value =
                    if style == ScalarStyle::Plain && !self.expects_key() { plain(&text) } else { Value::String(text.into_owned()) };
                self.put(value, anchor, span)
            }
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor).cloned() else { return fail("an alias inside of what it stands for") };
                self.copies += size(&value);
                if self.copies > MAX_COPIES {
                    return fail("aliases copy too much");
                }
                self.put(value, 0, span)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List(Vec::new()), anchor, span),
            Event::MappingStart(anchor, _) => self.begin(Open::Map(Map::new(), None), anchor, span),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((open, anchor)) = self.open.pop() else { return Ok(()) };
                let value = match open {
                    Open::List(list) => Value::Array(list),
                    Open::Map(map, _) => Value::Object(map),
                };
                self.put(value, anchor, span)
            }
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some((Open::Map(_, None), _)))
    }

    fn begin(&mut self, open: Open, anchor: usize, span: Span) -> Result<(), NotYaml> {
        if self.expects_key() {
            return Err(NotYaml { line: span.start.line(), reason: "a key must be a text".to_owned() });
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(NotYaml { line: span.start.line(), reason: format!("nested more than {MAX_DEPTH} deep") });
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn put(&mut self, value: Value, anchor: usize, span: Span) -> Result<(), NotYaml> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Open::List(list), _)) => list.push(value),
            Some((Open::Map(map, key), _)) => match (key.take(), value) {
                (None, Value::String(text)) => *key = Some(text),
                (None, _) => return Err(NotYaml { line: span.start.line(), reason: "a key must be a text".to_owned() }),
                (Some(key), Value::Object(merged)) if key == "<<" => {
                    for (name, value) in merged {
                        map.entry(name).or_insert(value);
                    }
                }
                (Some(key), value) => {
                    if map.contains_key(&key) {
                        return Err(NotYaml { line: span.start.line(), reason: format!("`{key}` is given twice; remove one") });
                    }
                    map.insert(key, value);
                }
            },
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// An unquoted scalar by YAML 1.2's core rules.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Value> {
    let starts_like_one = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    if !starts_like_one || !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E')) {
        return None;
    }
    text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<i64>().map(Value::from)).ok().or_else(|| {
        let float: f64 = text.parse().ok()?;
        serde_json::Number::from_f64(float).map(Value::Number)
    })
}

/// Follows the parser along the paths that are looked for.
struct Finder {
    /// A tree of the paths; the first is where all of them begin.
    places: Vec<Place>,
    /// The place of each step that leads to where the parser is, where one of the paths goes there.
    at: Vec<Option<usize>>,
    /// Open collections: a list's next index, or a mapping that waits for a key.
    open: Vec<Where>,
}

/// A place in a file that one of the paths at least goes through or to.
#[derive(Default)]
struct Place {
    keys: HashMap<String, usize>,
    items: HashMap<usize, usize>,
    line: Option<usize>,
}

enum Where {
    List(usize),
    Key,
    Value,
}

impl Finder {
    fn new(paths: &[impl AsRef<[Step]>]) -> Self {
        let mut places = vec![Place::default()];
        for path in paths {
            let mut at = 0;
            for step in path.as_ref() {
                let new = places.len();
                at = *match step {
                    Step::Key(key) => places[at].keys.entry(key.clone()).or_insert(new),
                    Step::Item(index) => places[at].items.entry(*index).or_insert(new),
                };
                if at == new {
                    places.push(Place::default());
                }
            }
        }
        Self { places, at: vec![Some(0)], open: Vec::new() }
    }

    /// The line of the last place on this path that has been seen.
    fn deepest(&self, path: &[Step]) -> Option<usize> {
        let mut place = &self.places[0];
        let mut line = place.line;
        for step in path {
            let next = match step {
                Step::Key(key) => place.keys.get(key),
                Step::Item(index) => place.items.get(index),
            };
            let Some(next) = next else { break };
            place = &self.places[*next];
            line = place.line.or(line);
        }
        line
    }

    fn event(&mut self, event: &Event<'_>, span: Span) {
        match event {
            Event::Scalar(text, ..) => {
                if let Some(place @ Where::Key) = self.open.last_mut() {
                    *place = Where::Value;
                    self.enter(|place| place.keys.get(&**text));
                    self.note(span);
                } else {
                    self.value(span);
                    self.after();
                }
            }
            Event::Alias(_) => {
                self.value(span);
                self.after();
            }
            Event::SequenceStart(..) => {
                self.value(span);
                self.open.push(Where::List(0));
            }
            Event::MappingStart(..) => {
                self.value(span);
                self.open.push(Where::Key);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop();
                self.after();
            }
            _ => {}
        }
    }

    /// One step on, to where `next` finds it.
    fn enter(&mut self, next: impl FnOnce(&Place) -> Option<&usize>) {
        let at = self.at.last().copied().flatten();
        self.at.push(at.and_then(|place| next(&self.places[place]).copied()));
    }

    /// A value begins.
    fn value(&mut self, span: Span) {
        if let Some(Where::List(index)) = self.open.last() {
            let index = *index;
            self.enter(|place| place.items.get(&index));
        }
        self.note(span);
    }

    /// A value ended.
    fn after(&mut self) {
        match self.open.last_mut() {
            Some(Where::List(index)) => {
                *index += 1;
                self.at.pop();
            }
            Some(place @ Where::Value) => {
                *place = Where::Key;
                self.at.pop();
            }
            _ => {}
        }
    }

    fn note(&mut self, span: Span) {
        if let Some(place) = self.at.last().copied().flatten() {
            self.places[place].line.get_or_insert(span.start.line());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_follow_the_core_rules() {
        let text = "a: 1\nb: '1'\nc: 0s\nd: true\ne: ~\nf: [1.5, -2, yes, 1.2.3.4, \"x\"]\ng: {h: i}\n4: x\n";
        let expected =
            json!({"a": 1, "b": "1", "c": "0s", "d": true, "e": null, "f": [1.5, -2, "yes", "1.2.3.4", "x"], "g": {"h": "i"}, "4": "x"});
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn anchors_are_copied_within_bounds() {
        assert_eq!(read("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n").unwrap(), json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..9 {
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(","));
        }
        assert!(read(&bomb).unwrap_err().reason.contains("aliases copy too much"));
    }

    #[test]
    fn broken_files_name_the_line() {
        let cases = [
            ("a: 1\nb: [1,\nc: 2\n", "line"),
            ("a: 1\na: 2\n", "`a` is given twice"),
            ("a: 1\n---\nb: 2\n", "second document"),
            (": : :\n\t- x", "line"),
        ];
        for (text, part) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn lines_are_found_by_path() {
        let text = "a:\n  b:\n  - c: 1\n  - c: 2\n    d: {e: 3}\nf: 4\n";
        let path = [Step::Key("a".into()), Step::Key("b".into()), Step::Item(1), Step::Key("d".into()), Step::Key("e".into())];
        assert_eq!(line_of(text, &path), Some(5));
        assert_eq!(line_of(text, &[Step::Key("f".into())]), Some(6));
        assert_eq!(line_of(text, &[Step::Key("a".into()), Step::Key("b".into()), Step::Item(0)]), Some(3));
        let aliased = "a: &x 1\nb:\n- *x\n- 2\nc: 3\n";
        let item = [Step::Key("b".into()), Step::Item(1)];
        assert_eq!(lines_of(aliased, &[&item[..], &item[..1], &[], &[Step::Key("c".into())]]), [Some(4), Some(2), Some(1), Some(5)]);
    }
}
