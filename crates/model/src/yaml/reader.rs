//! Bytes to documents. Every limit that keeps a hostile file from costing memory or time is enforced here.
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::json::join_surrogates;
use super::scalar;
use super::tree::{Entry, Node, Position, Value};

/// Bounds on one file. Each is far above what people write by hand and below what hurts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a file; default 4 MiB.
    pub max_file_bytes: usize,
    /// Nesting of mappings and lists; default 64.
    pub max_depth: usize,
    /// Values in a file, copies made by aliases included; default 500 000.
    pub max_nodes: usize,
    /// Values that aliases (`*name`) may copy in a file; default 20 000.
    pub max_alias_nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_file_bytes: 4 << 20, max_depth: 64, max_nodes: 500_000, max_alias_nodes: 20_000 }
    }
}

/// Why a document, or the whole file, could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// 0:0 when it is about the whole file.
    pub at: Position,
    pub message: String,
    pub suggestion: Option<String>,
}

/// One document of a file: its tree, and what is wrong with it although it could be read (keys given twice).
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub root: Node,
    pub errors: Vec<ReadError>,
}

impl ReadError {
    fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), suggestion: None }
    }

    fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }
}

/// Reads a file. Documents are separated before they are parsed, so a document that is not YAML leaves its neighbours
/// standing; an `Err` within the list is such a document. Empty documents are left out.
///
/// # Errors
/// When nothing of the file can be read: too large, not UTF-8, a NUL byte.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Vec<Result<Document, ReadError>>, ReadError> {
    let text = as_text(bytes, limits)?;
    let mut budget = Budget { nodes: limits.max_nodes, alias_nodes: limits.max_alias_nodes };
    let mut documents = Vec::new();
    for chunk in split(text) {
        match Builder::new(limits, &mut budget, &chunk).documents(&join_surrogates(chunk.text)) {
            Ok(found) => documents.extend(found.into_iter().filter(|document| document.root.value != Value::Null).map(Ok)),
            Err(error) => documents.push(Err(error)),
        }
        if budget.nodes == 0 {
            break;
        }
    }
    Ok(documents)
}

fn as_text<'a>(bytes: &'a [u8], limits: &Limits) -> Result<&'a str, ReadError> {
    if bytes.len() > limits.max_file_bytes {
        let message = format!("the file has {} bytes; at most {} are read", bytes.len(), limits.max_file_bytes);
        return Err(ReadError::new(Position::default(), message).suggest("split it into smaller files"));
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(ReadError::new(Position { line: 1, column: 1 }, "the file is UTF-16").suggest("save it as UTF-8"));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = position_of(&bytes[..error.valid_up_to()]);
        ReadError::new(at, "this byte is not UTF-8 text").suggest("save the file as UTF-8")
    })?;
    match bytes.iter().position(|byte| *byte == 0) {
        Some(index) => Err(ReadError::new(position_of(&bytes[..index]), "a NUL byte; this is not a text file")),
        None => Ok(text),
    }
}

/// The place just after `before`.
fn position_of(before: &[u8]) -> Position {
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let column = String::from_utf8_lossy(before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()).chars().count();
    Position { line: count(line) + 1, column: count(column) + 1 }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A part of the file between `---` lines and how many lines stand before it.
struct Chunk<'a> {
    text: &'a str,
    lines_before: u32,
}

/// Cuts at lines that start with `---`, as kubectl does. Within a document such a line cannot occur at column 1.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut line) = (0, 0);
    let mut blank = true;
    for part in text.split_inclusive('\n') {
        let marker = part.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // Directives before a marker stay with the document behind it.
        if marker && !blank {
            chunks.push(Chunk { text: &text[start..offset], lines_before: start_line });
            (start, start_line, blank) = (offset, line, true);
        }
        blank &= is_blank(part);
        offset += part.len();
        line += 1;
    }
    if !blank {
        chunks.push(Chunk { text: &text[start..], lines_before: start_line });
    }
    chunks
}

/// Whether a line is empty, a comment, a marker or a directive.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "..."
}

/// Keys given twice that are told of one document.
const MAX_DUPLICATES: usize = 20;

/// What may still be made, over all documents of the file.
struct Budget {
    nodes: usize,
    alias_nodes: usize,
}

/// What an anchor stands for.
struct Anchored {
    node: Node,
    size: usize,
    depth: usize,
}

/// A mapping or list whose end has not been seen.
struct Open {
    at: Position,
    anchor: usize,
    kind: OpenKind,
    size: usize,
    depth: usize,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashSet<String>, key: Option<(String, Position)>, merges: Vec<Node> },
}

/// Events of the parser to trees, without recursion.
struct Builder<'a> {
    limits: &'a Limits,
    budget: &'a mut Budget,
    chunk: &'a Chunk<'a>,
    anchors: HashMap<usize, Anchored>,
    open: Vec<Open>,
    errors: Vec<ReadError>,
    done: Vec<Document>,
}

impl<'a> Builder<'a> {
    fn new(limits: &'a Limits, budget: &'a mut Budget, chunk: &'a Chunk<'a>) -> Self {
        Self { limits, budget, chunk, anchors: HashMap::new(), open: Vec::new(), errors: Vec::new(), done: Vec::new() }
    }

    fn documents(mut self, text: &str) -> Result<Vec<Document>, ReadError> {
        let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| self.syntax_error(&error, text))?;
            self.event(event, span)?;
        }
        Ok(self.done)
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), ReadError> {
        let at = self.position(&span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(at)?;
                let is_key = self.expects_key();
                let value = if is_key { Value::String(text.into_owned()) } else { scalar_value(&text, style, tag.as_deref()) };
                let node = Node { value, at };
                self.remember(anchor, &node, 1, 0);
                self.put(node, 1, 0)
            }
            Event::SequenceStart(anchor, _) => self.start(at, anchor, OpenKind::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.start(at, anchor, OpenKind::Map { entries: Vec::new(), seen: HashSet::new(), key: None, merges: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => self.alias(id, at),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn position(&self, span: &Span) -> Position {
        Position { line: count(span.start.line()) + self.chunk.lines_before, column: count(span.start.col()) + 1 }
    }

    fn spend(&mut self, at: Position) -> Result<(), ReadError> {
        match self.budget.nodes.checked_sub(1) {
            Some(left) => {
                self.budget.nodes = left;
                Ok(())
            }
            None => Err(ReadError::new(at, format!("the file has more than {} values; the rest is not read", self.limits.max_nodes))
                .suggest("split it into smaller files")),
        }
    }

    fn start(&mut self, at: Position, anchor: usize, kind: OpenKind) -> Result<(), ReadError> {
        self.spend(at)?;
        if self.expects_key() {
            return Err(ReadError::new(at, "a mapping or list is used as a key").suggest("quote the text if it starts with { or ["));
        }
        self.check_depth(self.open.len() + 1, at)?;
        self.open.push(Open { at, anchor, kind, size: 1, depth: 1 });
        Ok(())
    }

    fn check_depth(&self, depth: usize, at: Position) -> Result<(), ReadError> {
        if depth > self.limits.max_depth {
            return Err(ReadError::new(at, format!("nested more than {} levels deep", self.limits.max_depth)));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ReadError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { mut entries, mut seen, merges, .. } => {
                for merge in merges {
                    self.merge(&mut entries, &mut seen, merge);
                }
                Value::Map(entries)
            }
        };
        let node = Node { value, at: open.at };
        self.remember(open.anchor, &node, open.size, open.depth);
        self.put(node, open.size, open.depth)
    }

    /// `<<: *base` adds the entries that the mapping itself does not have.
    fn merge(&mut self, entries: &mut Vec<Entry>, seen: &mut HashSet<String>, from: Node) {
        match from.value {
            Value::Map(base) => entries.extend(base.into_iter().filter(|entry| seen.insert(entry.key.clone()))),
            Value::List(bases) => {
                for base in bases {
                    match base.value {
                        Value::Map(base) => entries.extend(base.into_iter().filter(|entry| seen.insert(entry.key.clone()))),
                        _ => self.errors.push(ReadError::new(base.at, "`<<` merges mappings, and this is not one")),
                    }
                }
            }
            _ => self.errors.push(ReadError::new(from.at, "`<<` merges mappings, and this is not one")),
        }
    }

    fn remember(&mut self, anchor: usize, node: &Node, size: usize, depth: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, Anchored { node: node.clone(), size, depth });
        }
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<(), ReadError> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(ReadError::new(at, "this alias stands inside the value it names"));
        };
        let (size, depth) = (anchored.size, anchored.depth);
        let too_much = size > self.budget.alias_nodes || size > self.budget.nodes;
        if too_much {
            let limit = self.limits.max_alias_nodes;
            return Err(ReadError::new(at, format!("aliases copy more than {limit} values; this is refused")));
        }
        self.check_depth(self.open.len() + depth, at)?;
        self.budget.alias_nodes -= size;
        self.budget.nodes -= size;
        let node = Node { value: anchored.node.value.clone(), at };
        if self.expects_key() && !matches!(node.value, Value::String(_)) {
            return Err(ReadError::new(at, "this alias is used as a key and does not name a text"));
        }
        self.put(node, size, depth)
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { kind: OpenKind::Map { key: None, .. }, .. }))
    }

    /// Adds a finished value to what is open around it.
    fn put(&mut self, node: Node, size: usize, depth: usize) -> Result<(), ReadError> {
        let Some(open) = self.open.last_mut() else {
            self.done.push(Document { root: node, errors: std::mem::take(&mut self.errors) });
            return Ok(());
        };
        open.size = open.size.saturating_add(size);
        open.depth = open.depth.max(depth + 1);
        match &mut open.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { entries, seen, key, merges } => match key.take() {
                None => {
                    let Value::String(text) = node.value else {
                        return Err(ReadError::new(node.at, "a key must be a text"));
                    };
                    *key = Some((text, node.at));
                }
                Some((name, _)) if name == "<<" => merges.push(node),
                Some((name, key_at)) => {
                    if seen.insert(name.clone()) {
                        entries.push(Entry { key: name, key_at, value: node });
                    } else {
                        let first = entries.iter().find(|entry| entry.key == name).map_or(0, |entry| entry.key_at.line);
                        let message = format!("the key \"{name}\" is given twice; it stands already at line {first}");
                        if self.errors.len() < MAX_DUPLICATES {
                            self.errors.push(ReadError::new(key_at, message).suggest("keep one of them"));
                        }
                    }
                }
            },
        }
        Ok(())
    }

    fn syntax_error(&self, error: &ScanError, text: &str) -> ReadError {
        let marker = error.marker();
        let at = Position { line: count(marker.line()).max(1) + self.chunk.lines_before, column: count(marker.col()) + 1 };
        if let Some(index) = text.lines().take(marker.line().max(1)).position(has_tab_indent) {
            let at = Position { line: count(index) + 1 + self.chunk.lines_before, column: 1 };
            return ReadError::new(at, "a tab is used for indentation").suggest("YAML wants spaces");
        }
        ReadError::new(at, format!("this is not YAML: {}", error.info())).suggest("check the indentation and quotes here and above")
    }
}

/// Whether a line of a block is indented with a tab.
fn has_tab_indent(line: &str) -> bool {
    line.trim_start_matches(' ').starts_with('\t') && !line.trim().is_empty()
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let core = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match (core, style) {
        (Some("str" | "binary"), _) => Value::String(text.to_owned()),
        (Some("int" | "float" | "bool" | "null"), _) | (None, ScalarStyle::Plain) => scalar::resolve(text),
        _ => Value::String(text.to_owned()),
    }
}
