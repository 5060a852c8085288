//! The shapes of all messages, read from the descriptor set only as far as somebody asks.
//!
//! A reflection library that builds its whole pool takes tens of milliseconds and some megabytes, which every
//! start of a proxy and every dump would pay; a bootstrap touches a few dozen of the several hundred messages.
use std::collections::HashMap;
use std::sync::OnceLock;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{EnumDescriptorProto, FieldDescriptorProto};

/// Every message and enum of this crate by its full name.
#[derive(Debug)]
pub struct Schema {
    messages: Vec<Entry<Message>>,
    enums: Vec<Entry<Enum>>,
    by_name: HashMap<String, Id>,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    Message(MessageId),
    Enum(EnumId),
}

/// A message of the schema it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(usize);

/// An enum of the schema it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnumId(usize);

#[derive(Debug)]
struct Entry<T> {
    full_name: String,
    encoded: &'static [u8],
    read: OnceLock<T>,
}

/// The fields of a message.
#[derive(Debug, Default)]
pub struct Message {
    pub full_name: String,
    /// By number.
    pub fields: Vec<Field>,
    /// Names in either spelling, where there are two, each at the place that its [`mark`] names or the next free one: a power of
    /// two places, at least half of them free.
    by_name: Vec<Option<Spelt>>,
}

/// One spelling of a field's name.
#[derive(Debug)]
struct Spelt {
    mark: u64,
    spelling: Spelling,
    /// Its place in `fields`.
    at: usize,
}

/// How a field's name is spelt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    Snake,
    Camel,
}

/// One field.
#[derive(Debug)]
pub struct Field {
    /// `snake_case`, as in the `.proto` file.
    pub name: String,
    /// `camelCase`.
    pub json_name: String,
    pub number: u32,
    pub cardinality: Cardinality,
    pub kind: Kind,
    /// Which of the message's `oneof`s it belongs to; fields marked `optional` belong to none.
    pub oneof: Option<i32>,
    /// Whether the zero value, when present, means something else than an absent field.
    pub has_presence: bool,
    /// Nothing in it is to be shown: keys, passwords and the like.
    pub sensitive: bool,
}

/// How often a field may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    Single,
    List,
    /// Of entries, messages with the fields `key` (1) and `value` (2).
    Map,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Message(MessageId),
    Enum(EnumId),
}

/// Names and numbers of an enum.
#[derive(Debug, Default)]
pub struct Enum {
    pub full_name: String,
    /// In the order of the `.proto` file.
    pub values: Vec<(String, i32)>,
}

impl Schema {
    /// Finds where each message and enum stands; none is read yet.
    pub fn new() -> Self {
        let mut schema = Self { messages: Vec::new(), enums: Vec::new(), by_name: HashMap::new() };
        // FileDescriptorSet.file = 1
        for (_, file) in pieces(crate::DESCRIPTORS).filter(|(number, _)| *number == 1) {
            schema.file(file);
        }
        schema
    }

    /// The message of this full name, without a leading dot.
    pub fn message_named(&self, full_name: &str) -> Option<MessageId> {
        match self.by_name.get(full_name)? {
            Id::Message(id) => Some(*id),
            Id::Enum(_) => None,
        }
    }

    pub fn message(&self, id: MessageId) -> &Message {
        static NONE: Message = Message { full_name: String::new(), fields: Vec::new(), by_name: Vec::new() };
        let Some(entry) = self.messages.get(id.0) else { return &NONE };
        entry.read.get_or_init(|| {
            // DescriptorProto.field = 2
            let mut fields: Vec<Field> =
                pieces(entry.encoded).filter(|(number, _)| *number == 2).filter_map(|(_, f)| self.field(f)).collect();
            fields.sort_by_key(|f| f.number);
            Message::new(entry.full_name.clone(), fields)
        })
    }

    pub fn enumeration(&self, id: EnumId) -> &Enum {
        static NONE: Enum = Enum { full_name: String::new(), values: Vec::new() };
        let Some(entry) = self.enums.get(id.0) else { return &NONE };
        entry.read.get_or_init(|| {
            let descriptor = EnumDescriptorProto::decode(entry.encoded).unwrap_or_default();
            let values = descriptor.value.into_iter().map(|v| (v.name.unwrap_or_default(), v.number.unwrap_or_default()));
            Enum { full_name: entry.full_name.clone(), values: values.collect() }
        })
    }

    // FileDescriptorProto: package = 2, message_type = 4, enum_type = 5
    fn file(&mut self, file: &'static [u8]) {
        let package = pieces(file).find(|(number, _)| *number == 2).map(|(_, name)| text(name)).unwrap_or_default();
        for (number, piece) in pieces(file) {
            match number {
                4 => self.add_message(package, piece),
                5 => self.add_enum(package, piece),
                _ => {}
            }
        }
    }

    // DescriptorProto: name = 1, nested_type = 3, enum_type = 4
    fn add_message(&mut self, scope: &str, encoded: &'static [u8]) {
        let full_name = join(scope, encoded);
        self.by_name.insert(full_name.clone(), Id::Message(MessageId(self.messages.len())));
        self.messages.push(Entry { full_name: full_name.clone(), encoded, read: OnceLock::new() });
        for (number, piece) in pieces(encoded) {
            match number {
                3 => self.add_message(&full_name, piece),
                4 => self.add_enum(&full_name, piece),
                _ => {}
            }
        }
    }

    fn add_enum(&mut self, scope: &str, encoded: &'static [u8]) {
        let full_name = join(scope, encoded);
        self.by_name.insert(full_name.clone(), Id::Enum(EnumId(self.enums.len())));
        self.enums.push(Entry { full_name, encoded, read: OnceLock::new() });
    }

    fn field(&self, encoded: &'static [u8]) -> Option<Field> {
        let proto = FieldDescriptorProto::decode(encoded).ok()?;
        let (label, optional) = (proto.label(), proto.proto3_optional());
        let kind = self.kind(&proto)?;
        let cardinality = match (label, kind) {
            (Label::Repeated, Kind::Message(id)) if self.is_map_entry(id) => Cardinality::Map,
            (Label::Repeated, _) => Cardinality::List,
            _ => Cardinality::Single,
        };
        let oneof = proto.oneof_index.filter(|_| !optional);
        let name = proto.name.unwrap_or_default();
        let has_presence = optional || oneof.is_some() || matches!(kind, Kind::Message(_));
        let number = u32::try_from(proto.number.unwrap_or_default()).ok()?;
        Some(Field {
            json_name: proto.json_name.unwrap_or_else(|| camel_case(&name)),
            name,
            number,
            cardinality,
            kind,
            oneof,
            has_presence,
            sensitive: is_sensitive(encoded),
        })
    }

    fn kind(&self, proto: &FieldDescriptorProto) -> Option<Kind> {
        let named = || self.by_name.get(proto.type_name().trim_start_matches('.'));
        Some(match proto.r#type() {
            Type::Double => Kind::Double,
            Type::Float => Kind::Float,
            Type::Int32 => Kind::Int32,
            Type::Int64 => Kind::Int64,
            Type::Uint32 => Kind::Uint32,
            Type::Uint64 => Kind::Uint64,
            Type::Sint32 => Kind::Sint32,
            Type::Sint64 => Kind::Sint64,
            Type::Fixed32 => Kind::Fixed32,
            Type::Fixed64 => Kind::Fixed64,
            Type::Sfixed32 => Kind::Sfixed32,
            Type::Sfixed64 => Kind::Sfixed64,
            Type::Bool => Kind::Bool,
            Type::String => Kind::String,
            Type::Bytes => Kind::Bytes,
            Type::Message => match named()? {
                Id::Message(id) => Kind::Message(*id),
                Id::Enum(_) => return None,
            },
            Type::Enum => match named()? {
                Id::Enum(id) => Kind::Enum(*id),
                Id::Message(_) => return None,
            },
            // Of proto2; no message here has one.
            Type::Group => return None,
        })
    }

    // DescriptorProto.options = 7, MessageOptions.map_entry = 7
    fn is_map_entry(&self, id: MessageId) -> bool {
        let Some(entry) = self.messages.get(id.0) else { return false };
        let options = pieces(entry.encoded).find(|(number, _)| *number == 7);
        options.is_some_and(|(_, encoded)| prost_types::MessageOptions::decode(encoded).is_ok_and(|o| o.map_entry()))
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self::new()
    }
}

impl Message {
    fn new(full_name: String, fields: Vec<Field>) -> Self {
        let mut by_name = Vec::new();
        by_name.resize_with(4 * fields.len().next_power_of_two(), || None);
        for (at, field) in fields.iter().enumerate() {
            let second = (field.json_name != field.name).then_some(Spelling::Camel);
            for spelling in [Spelling::Snake].into_iter().chain(second) {
                let mark = mark(field.spelt(spelling));
                if let Some(place) = places(mark, &by_name).find(|place| by_name[*place].is_none()) {
                    by_name[place] = Some(Spelt { mark, spelling, at });
                }
            }
        }
        Self { full_name, fields, by_name }
    }

    pub fn field(&self, number: u32) -> Option<&Field> {
        self.fields.binary_search_by_key(&number, |f| f.number).ok().and_then(|at| self.fields.get(at))
    }

    /// The field of this name in either spelling, and its place in `fields`.
    pub fn field_named(&self, name: &str) -> Option<(usize, &Field)> {
        let mark = mark(name);
        for place in places(mark, &self.by_name) {
            let spelt = self.by_name.get(place)?.as_ref()?;
            let field = self.fields.get(spelt.at)?;
            if spelt.mark == mark && field.spelt(spelt.spelling) == name {
                return Some((spelt.at, field));
            }
        }
        None
    }

    /// `Listener` of `envoy.config.listener.v3.Listener`.
    pub fn short_name(&self) -> &str {
        self.full_name.rsplit('.').next().unwrap_or_default()
    }
}

impl Field {
    fn spelt(&self, spelling: Spelling) -> &str {
        match spelling {
            Spelling::Snake => &self.name,
            Spelling::Camel => &self.json_name,
        }
    }
}

/// Tells nearly all names of a message apart as one number: its length, and how it ends.
fn mark(name: &str) -> u64 {
    let end = match name.as_bytes().last_chunk() {
        Some(last) => u64::from_le_bytes(*last),
        None => name.bytes().fold(0, |end, byte| end << 8 | u64::from(byte)) << 8,
    };
    // The length takes the place of the first of the eight.
    end & !0xff | name.len() as u64 & 0xff
}

/// Where a name of this mark is looked for, one place after the other.
fn places(mark: u64, table: &[Option<Spelt>]) -> impl Iterator<Item = usize> + use<> {
    let mask = table.len().wrapping_sub(1);
    let first = (mark.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    (0..table.len()).map(move |more| first.wrapping_add(more) & mask)
}

/// The strings and messages in an encoded message: number and content.
fn pieces(encoded: &'static [u8]) -> impl Iterator<Item = (u32, &'static [u8])> {
    crate::wire::pieces(encoded).filter_map(|piece| Some((piece.number, piece.content?)))
}

/// Whether an encoded field is annotated so. The library that decodes options leaves out annotations, which are extensions.
fn is_sensitive(encoded: &'static [u8]) -> bool {
    // FieldDescriptorProto.options = 8, with the extension `udpa.annotations.sensitive`
    const SENSITIVE: u32 = 76_569_463;
    let mut options = pieces(encoded).filter(|(number, _)| *number == 8).flat_map(|(_, options)| crate::wire::pieces(options));
    options.any(|option| option.number == SENSITIVE && option.whole.last() == Some(&1))
}

/// The name of an encoded message or enum (field 1), within its scope.
fn join(scope: &str, encoded: &'static [u8]) -> String {
    let name = pieces(encoded).find(|(number, _)| *number == 1).map(|(_, name)| text(name)).unwrap_or_default();
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn text(bytes: &'static [u8]) -> &'static str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if std::mem::take(&mut upper) => out.push(c.to_ascii_uppercase()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    /// Every message, field and enum, against the reflection library.
    #[test]
    fn all_shapes_are_what_the_descriptor_set_says() {
        let (schema, pool) = (Schema::new(), DescriptorPool::decode(crate::DESCRIPTORS).unwrap());
        let annotation = pool.get_extension_by_name("udpa.annotations.sensitive").unwrap();
        let (mut fields, mut sensitive) = (0, 0);
        for theirs in pool.all_messages() {
            let ours = schema.message(schema.message_named(theirs.full_name()).unwrap());
            assert_eq!(ours.full_name, theirs.full_name());
            assert_eq!(ours.fields.len(), theirs.fields().len(), "{}", ours.full_name);
            for field in theirs.fields() {
                let our = ours.field(field.number()).unwrap();
                assert_eq!((our.name.as_str(), our.json_name.as_str()), (field.name(), field.json_name()));
                for name in [field.name(), field.json_name()] {
                    let (at, found) = ours.field_named(name).unwrap();
                    assert_eq!((found.number, ours.fields[at].number), (field.number(), field.number()), "{name}");
                }
                assert_eq!(our.cardinality == Cardinality::Map, field.is_map(), "{field:?}");
                assert_eq!(our.cardinality == Cardinality::List, field.is_list(), "{field:?}");
                let oneof = field.containing_oneof().filter(|o| !o.is_synthetic());
                assert_eq!(our.oneof.is_some(), oneof.is_some(), "{field:?}");
                assert_eq!(our.sensitive, field.options().get_extension(&annotation).as_bool().unwrap(), "{field:?}");
                sensitive += usize::from(our.sensitive);
                let named = match our.kind {
                    Kind::Message(id) => schema.message(id).full_name.clone(),
                    Kind::Enum(id) => schema.enumeration(id).full_name.clone(),
                    other => format!("{other:?}").to_lowercase(),
                };
                let kind = field.kind();
                let expected = kind.as_message().map(|m| m.full_name().to_owned()).or(kind.as_enum().map(|e| e.full_name().to_owned()));
                assert_eq!(named, expected.unwrap_or_else(|| format!("{kind:?}").to_lowercase()), "{field:?}");
                fields += 1;
            }
        }
        for theirs in pool.all_enums() {
            let Some(Id::Enum(id)) = schema.by_name.get(theirs.full_name()) else { panic!("no {}", theirs.full_name()) };
            // Several names may have one number.
            let sorted = |mut values: Vec<(String, i32)>| {
                values.sort_by(|(a, i), (b, j)| i.cmp(j).then_with(|| a.cmp(b)));
                values
            };
            let values = sorted(theirs.values().map(|v| (v.name().to_owned(), v.number())).collect());
            assert_eq!(sorted(schema.enumeration(*id).values.clone()), values, "{}", theirs.full_name());
        }
        assert!(fields > 3000 && sensitive > 5, "{fields} fields, of which {sensitive} are sensitive");
    }

    #[test]
    fn a_name_nobody_has_is_not_there() {
        let schema = Schema::new();
        assert_eq!(schema.message_named("envoy.config.core.v3.Nothing"), None);
        assert_eq!(schema.message_named("envoy.config.core.v3.RoutingPriority"), None, "an enum is no message");
    }
}
