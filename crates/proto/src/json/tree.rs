//! A tree of JSON as it stands in its text: one list of nodes in the order written, strings borrowed where nothing was escaped.
//!
//! A bootstrap of thousands of clusters is read once and thrown away: a collection of its own for each of some hundred
//! thousand mappings, and a copy of every key, would cost more than all the rest of reading it.
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A whole text, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree<'t> {
    /// A collection is followed by what is in it.
    nodes: Vec<Node<'t>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node<'t> {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(&'t str),
    /// A string that had escapes.
    Unescaped(Box<str>),
    /// With the number of nodes in it.
    List(usize),
    /// The same; a key, which is a string, stands before each value. A key may stand twice.
    Map(usize),
}

/// One value of a tree.
#[derive(Clone, Copy)]
pub(super) struct Json<'a> {
    /// Its own node, and those in it.
    nodes: &'a [Node<'a>],
}

/// What a value is.
#[derive(Clone, Copy)]
pub(super) enum View<'a> {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(&'a str),
    List(Items<'a>),
    Map(Entries<'a>),
}

/// The values of a list.
#[derive(Clone, Copy)]
pub(super) struct Items<'a>(&'a [Node<'a>]);

/// The keys and values of a mapping, in the order written.
#[derive(Clone, Copy)]
pub(super) struct Entries<'a>(&'a [Node<'a>]);

impl<'t> Tree<'t> {
    /// Reads JSON text. Nesting beyond 128 is refused.
    ///
    /// # Errors
    /// When it is no JSON, with line and column.
    pub fn parse(text: &'t str) -> Result<Self, serde_json::Error> {
        // As much as most texts need; what is not needed is never touched.
        let mut nodes = Vec::with_capacity(text.len() / 10);
        let mut reader = serde_json::Deserializer::from_str(text);
        Builder(&mut nodes).deserialize(&mut reader)?;
        reader.end()?;
        Ok(Self { nodes })
    }

    /// How many values and keys there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn root(&self) -> Json<'_> {
        Json { nodes: &self.nodes }
    }

    fn add(&mut self, value: &'t Value) {
        let start = self.nodes.len();
        match value {
            Value::Null => self.nodes.push(Node::Null),
            Value::Bool(truth) => self.nodes.push(Node::Bool(*truth)),
            Value::Number(n) => self.nodes.push(match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => Node::Unsigned(n),
                (None, Some(n)) => Node::Signed(n),
                (None, None) => Node::Float(n.as_f64().unwrap_or_default()),
            }),
            Value::String(text) => self.nodes.push(Node::Text(text)),
            Value::Array(items) => {
                self.nodes.push(Node::List(0));
                items.iter().for_each(|item| self.add(item));
                close(&mut self.nodes, start, Node::List);
            }
            Value::Object(entries) => {
                self.nodes.push(Node::Map(0));
                for (key, value) in entries {
                    self.nodes.push(Node::Text(key));
                    self.add(value);
                }
                close(&mut self.nodes, start, Node::Map);
            }
        }
    }
}

impl<'t> From<&'t Value> for Tree<'t> {
    fn from(value: &'t Value) -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.add(value);
        tree
    }
}

/// Says of the collection that begins at `start` how much is in it: all that followed.
fn close<'t>(nodes: &mut [Node<'t>], start: usize, of: fn(usize) -> Node<'t>) {
    let inside = nodes.len().saturating_sub(start + 1);
    if let Some(node) = nodes.get_mut(start) {
        *node = of(inside);
    }
}

/// The first value of `nodes`, and what follows it.
fn first<'a>(nodes: &'a [Node<'a>]) -> Option<(Json<'a>, &'a [Node<'a>])> {
    let inside = match nodes.first()? {
        Node::List(inside) | Node::Map(inside) => *inside,
        _ => 0,
    };
    let (value, rest) = nodes.split_at_checked(inside + 1)?;
    Some((Json { nodes: value }, rest))
}

impl<'a> Json<'a> {
    pub(super) const NULL: Json<'static> = Json { nodes: &[Node::Null] };

    pub(super) fn view(self) -> View<'a> {
        let inside = self.nodes.get(1..).unwrap_or_default();
        match self.nodes.first() {
            None | Some(Node::Null) => View::Null,
            Some(Node::Bool(truth)) => View::Bool(*truth),
            Some(Node::Signed(n)) => View::Signed(*n),
            Some(Node::Unsigned(n)) => View::Unsigned(*n),
            Some(Node::Float(n)) => View::Float(*n),
            Some(Node::Text(text)) => View::Text(text),
            Some(Node::Unescaped(text)) => View::Text(text),
            Some(Node::List(_)) => View::List(Items(inside)),
            Some(Node::Map(_)) => View::Map(Entries(inside)),
        }
    }

    pub(super) fn as_text(self) -> Option<&'a str> {
        if let View::Text(text) = self.view() { Some(text) } else { None }
    }

    pub(super) fn as_list(self) -> Option<Items<'a>> {
        if let View::List(items) = self.view() { Some(items) } else { None }
    }

    pub(super) fn as_map(self) -> Option<Entries<'a>> {
        if let View::Map(entries) = self.view() { Some(entries) } else { None }
    }

    pub(super) fn as_bool(self) -> Option<bool> {
        if let View::Bool(truth) = self.view() { Some(truth) } else { None }
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self.view(), View::Null)
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Json<'a>;

    fn next(&mut self) -> Option<Json<'a>> {
        let (item, rest) = first(self.0)?;
        self.0 = rest;
        Some(item)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, Json<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.pair()?;
        Some((key.as_text().unwrap_or_default(), value))
    }
}

impl<'a> Entries<'a> {
    /// The next key, as a value of its own, with its value.
    pub(super) fn pair(&mut self) -> Option<(Json<'a>, Json<'a>)> {
        let (key, rest) = first(self.0)?;
        let (value, rest) = first(rest)?;
        self.0 = rest;
        Some((key, value))
    }

    /// The value of a key.
    pub(super) fn get(mut self, key: &str) -> Option<Json<'a>> {
        self.find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

/// As JSON, for messages.
impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.view() {
            View::Null => f.write_str("null"),
            View::Bool(truth) => write!(f, "{truth}"),
            View::Signed(n) => write!(f, "{n}"),
            View::Unsigned(n) => write!(f, "{n}"),
            View::Float(n) => write!(f, "{n}"),
            View::Text(text) => write!(f, "{text:?}"),
            View::List(_) => f.write_str("a list"),
            View::Map(_) => f.write_str("a mapping"),
        }
    }
}

/// Appends one value.
struct Builder<'n, 't>(&'n mut Vec<Node<'t>>);

impl<'de> DeserializeSeed<'de> for Builder<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Builder<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.push(Node::Null);
        Ok(())
    }

    fn visit_bool<E>(self, truth: bool) -> Result<(), E> {
        self.0.push(Node::Bool(truth));
        Ok(())
    }

    fn visit_i64<E>(self, n: i64) -> Result<(), E> {
        self.0.push(Node::Signed(n));
        Ok(())
    }

    fn visit_u64<E>(self, n: u64) -> Result<(), E> {
        self.0.push(Node::Unsigned(n));
        Ok(())
    }

    fn visit_f64<E>(self, n: f64) -> Result<(), E> {
        self.0.push(Node::Float(n));
        Ok(())
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.0.push(Node::Text(text));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push(Node::Unescaped(text.into()));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let start = self.0.len();
        self.0.push(Node::List(0));
        while access.next_element_seed(Builder(&mut *self.0))?.is_some() {}
        close(self.0, start, Node::List);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let start = self.0.len();
        self.0.push(Node::Map(0));
        while access.next_key_seed(Builder(&mut *self.0))?.is_some() {
            access.next_value_seed(Builder(&mut *self.0))?;
        }
        close(self.0, start, Node::Map);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_without_a_copy_unless_it_has_escapes() {
        let tree = Tree::parse(r#"{"name": "l", "esc\u0061ped": "a\"b", "list": [1, [-2], {}, null, 1.5, true]}"#).unwrap();
        assert!(matches!(&tree.nodes[1..3], [Node::Text("name"), Node::Text("l")]));
        assert!(matches!(&tree.nodes[3..5], [Node::Unescaped(key), Node::Unescaped(text)] if &**key == "escaped" && &**text == "a\"b"));
        let Some(entries) = tree.root().as_map() else { panic!() };
        let items: Vec<String> = entries.get("list").unwrap().as_list().unwrap().map(|item| item.to_string()).collect();
        assert_eq!(items, ["1", "a list", "a mapping", "null", "1.5", "true"]);
        assert_eq!(entries.get("none").map(Json::is_null), None);
    }

    #[test]
    fn a_value_and_its_text_are_the_same_tree() {
        let text = r#"{"a": [1, {"b": null, "c": [[], {}, "x"]}, -7], "d": 0.5, "e": {"f": false}}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(Tree::parse(text).unwrap(), Tree::from(&value));
    }
}
