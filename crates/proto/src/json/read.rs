//! JSON to wire bytes.
use std::cell::RefCell;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_varint, encoded_len_varint};

use super::tree::{Entries, Json, Tree, View};
use super::wellknown::WellKnown;
use super::{At, MAX_DEPTH, Misfit, Step};
use crate::schema::{Cardinality, EnumId, Field, Kind, Message, MessageId, Schema};

type Result<T> = std::result::Result<T, Misfit>;

/// So much is told of one message: more is of the same kind.
const MOST_TOLD: usize = 64;

/// The message as bytes.
pub(super) fn message(schema: &Schema, id: MessageId, json: &Tree<'_>) -> Result<Vec<u8>> {
    Reader { schema, left_out: None }.whole(id, json)
}

/// The message as bytes, and what is not in them since the message knows no such thing.
pub(super) fn known(schema: &Schema, id: MessageId, json: &Tree<'_>) -> Result<(Vec<u8>, Vec<Misfit>)> {
    let reader = Reader { schema, left_out: Some(RefCell::default()) };
    let bytes = reader.whole(id, json)?;
    Ok((bytes, reader.left_out.map(RefCell::into_inner).unwrap_or_default()))
}

struct Reader<'s> {
    schema: &'s Schema,
    /// Unknown fields and values of enums; without it they are misfits like others.
    left_out: Option<RefCell<Vec<Misfit>>>,
}

impl Reader<'_> {
    fn whole(&self, id: MessageId, json: &Tree<'_>) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4 * json.len());
        self.message(id, json.root(), 0, &mut out)?;
        Ok(out)
    }

    fn leave_out(&self, what: Misfit) -> Result<()> {
        let Some(left_out) = &self.left_out else { return Err(what) };
        let mut left_out = left_out.borrow_mut();
        if left_out.len() < MOST_TOLD {
            left_out.push(what);
        }
        Ok(())
    }

    /// Says of what is wrong, or left out, within that it stands at this step.
    fn at<T>(&self, step: impl Fn() -> Step, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(left_out) = &self.left_out else { return read().at(step) };
        let before = left_out.borrow().len();
        let made = read().at(&step);
        for what in left_out.borrow_mut().iter_mut().skip(before) {
            what.path.insert(0, step());
        }
        made
    }

    fn message(&self, id: MessageId, json: Json<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Misfit::new("is nested too deep"));
        }
        let shape = self.schema.message(id);
        match WellKnown::of(&shape.full_name) {
            Some(WellKnown::Any) => self.any(json, depth, out),
            Some(known) => known.read(json, out),
            None => self.fields(shape, mapping(shape, json)?, false, depth, out),
        }
    }

    /// Within an `Any`, `@type` stands among the fields and is none.
    fn fields(&self, shape: &Message, json: Entries<'_>, in_any: bool, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        // Which fields have stood already, and of which oneofs one did with a value.
        let (mut seen, mut given) = (Marks::default(), Marks::default());
        for (key, value) in json {
            let key_step = || Step::Key(key.to_owned());
            if in_any && key == "@type" {
                continue;
            }
            let Some((at, field)) = shape.field_named(key) else {
                self.at(key_step, || self.leave_out(Misfit::new(unknown(shape, key))))?;
                continue;
            };
            if !seen.add(at) {
                return Err(Misfit::new(format!("stands twice; `{}` and `{}` are the same", field.name, field.json_name))).at(key_step);
            }
            if value.is_null() && !self.takes_null(field) {
                continue;
            }
            if let Some(oneof) = field.oneof
                && !given.add(usize::try_from(oneof).unwrap_or_default())
            {
                let other = shape.fields.iter().enumerate().find(|(other, f)| *other != at && f.oneof == field.oneof && seen.has(*other));
                let name = other.map_or("", |(_, f)| &f.name);
                return Err(Misfit::new(format!("cannot stand beside `{name}`; choose one"))).at(key_step);
            }
            self.at(key_step, || self.field(field, value, depth, out))?;
        }
        Ok(())
    }

    /// Null is a value of its own for `google.protobuf.Value`, elsewhere it stands for an absent field.
    fn takes_null(&self, field: &Field) -> bool {
        let is_value = |id| WellKnown::of(&self.schema.message(id).full_name) == Some(WellKnown::Value);
        field.cardinality == Cardinality::Single && matches!(field.kind, Kind::Message(id) if is_value(id))
    }

    fn field(&self, field: &Field, json: Json<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        match field.cardinality {
            Cardinality::Single => self.value(field, json, depth, out),
            Cardinality::List => {
                let items = json.as_list().ok_or_else(|| Misfit::new("must be a list"))?;
                items.enumerate().try_for_each(|(index, item)| {
                    let read = || {
                        let item = if item.is_null() { self.null_item(field)? } else { item };
                        self.value(field, item, depth, out)
                    };
                    self.at(|| Step::Item(index), read)
                })
            }
            Cardinality::Map => self.map(field, json, depth, out),
        }
    }

    /// Null among the items of a list, which only a list of `Value`s may hold.
    fn null_item(&self, field: &Field) -> Result<Json<'static>> {
        let is_value = |id| WellKnown::of(&self.schema.message(id).full_name) == Some(WellKnown::Value);
        let fits = matches!(field.kind, Kind::Message(id) if is_value(id));
        if fits { Ok(Json::NULL) } else { Err(Misfit::new("must not be null")) }
    }

    fn map(&self, field: &Field, json: Json<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        let Kind::Message(entry) = field.kind else { return Ok(()) };
        let entry = self.schema.message(entry);
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return Ok(()) };
        let mut entries = json.as_map().ok_or_else(|| Misfit::new("must be a mapping"))?;
        while let Some((key, value)) = entries.pair() {
            let name = key.as_text().unwrap_or_default();
            let entry = |out: &mut Vec<u8>| {
                match key_field.kind {
                    Kind::Bool => {
                        let truth: bool = name.parse().map_err(|_| Misfit::new("must be true or false"))?;
                        varint(key_field.number, truth.into(), out);
                    }
                    _ => self.value(key_field, key, depth, out)?,
                }
                self.value(value_field, value, depth, out)
            };
            self.at(|| Step::Key(name.to_owned()), || nested(field.number, out, entry))?;
        }
        Ok(())
    }

    /// One value with its key.
    fn value(&self, field: &Field, json: Json<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        let number = field.number;
        match field.kind {
            Kind::Message(id) => nested(number, out, |out| self.message(id, json, depth + 1, out))?,
            Kind::String => delimited(number, text(json)?.as_bytes(), out),
            Kind::Bytes => delimited(number, &base64(json)?, out),
            Kind::Bool => varint(number, u64::from(json.as_bool().ok_or_else(|| must("true or false", json))?), out),
            Kind::Enum(id) => {
                if let Some(value) = self.enumeration(id, json)? {
                    varint(number, i64::from(value) as u64, out);
                }
            }
            Kind::Int32 => varint(number, i64::from(signed::<i32>(json)?) as u64, out),
            Kind::Int64 => varint(number, signed::<i64>(json)? as u64, out),
            Kind::Uint32 => varint(number, unsigned::<u32>(json)?.into(), out),
            Kind::Uint64 => varint(number, unsigned::<u64>(json)?, out),
            Kind::Sint32 => varint(number, zigzag(signed::<i32>(json)?.into()), out),
            Kind::Sint64 => varint(number, zigzag(signed::<i64>(json)?), out),
            Kind::Fixed32 => four(number, unsigned::<u32>(json)?.to_le_bytes(), out),
            Kind::Sfixed32 => four(number, signed::<i32>(json)?.to_le_bytes(), out),
            Kind::Float => four(number, (float(json)? as f32).to_le_bytes(), out),
            Kind::Fixed64 => eight(number, unsigned::<u64>(json)?.to_le_bytes(), out),
            Kind::Sfixed64 => eight(number, signed::<i64>(json)?.to_le_bytes(), out),
            Kind::Double => eight(number, float(json)?.to_le_bytes(), out),
        }
        Ok(())
    }

    /// A name may be in any case, as Envoy takes it, and a number in a string (protobuf `ParseEnumFromStr`). `None` where it is
    /// left out.
    fn enumeration(&self, id: EnumId, json: Json<'_>) -> Result<Option<i32>> {
        let View::Text(name) = json.view() else { return signed::<i32>(json).map(Some) };
        let shape = self.schema.enumeration(id);
        if let Some((_, number)) = shape.values.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return Ok(Some(*number));
        }
        if let Ok(number) = name.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']).parse() {
            return Ok(Some(number));
        }
        let names: Vec<&str> = shape.values.iter().map(|(name, _)| name.as_str()).take(12).collect();
        self.leave_out(Misfit::new(format!("`{name}` is not one of {}", names.join(", "))))?;
        Ok(None)
    }

    /// `{"@type": URL, field: ...}`, or `{"@type": URL, "value": ...}` for types with JSON of their own, or `{}` for none.
    fn any(&self, json: Json<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        let fields = json.as_map().ok_or_else(|| must("a mapping with `@type`", json))?;
        if fields.count() == 0 {
            // An envelope with nothing in it.
            return Ok(());
        }
        let url = fields.get("@type").and_then(Json::as_text).ok_or_else(|| Misfit::new("has no `@type`"))?;
        let name = url.rsplit('/').next().unwrap_or(url);
        let id = self.schema.message_named(name).ok_or_else(|| Misfit::new(format!("`{name}` is not a known type")))?;
        delimited(1, url.as_bytes(), out);
        nested(2, out, |out| {
            if WellKnown::of(name).is_some() {
                return match fields.get("value") {
                    Some(inner) => self.at(|| Step::Key("value".to_owned()), || self.message(id, inner, depth + 1, out)),
                    // Nothing but its type: the empty one.
                    None if fields.count() == 1 => Ok(()),
                    None => Err(Misfit::new("has no `value`")),
                };
            }
            if depth >= MAX_DEPTH {
                return Err(Misfit::new("is nested too deep"));
            }
            self.fields(self.schema.message(id), fields, true, depth + 1, out)
        })
    }
}

fn mapping<'j>(shape: &Message, json: Json<'j>) -> Result<Entries<'j>> {
    json.as_map().ok_or_else(|| Misfit::new(format!("must be a mapping of fields of {}", shape.short_name())))
}

/// Which fields of a message something is true of. Few messages have more fields than these numbers have bits.
#[derive(Default)]
struct Marks {
    first: [u64; 2],
    others: Vec<usize>,
}

impl Marks {
    fn has(&self, at: usize) -> bool {
        self.first.get(at / 64).map_or_else(|| self.others.contains(&at), |bits| bits >> (at % 64) & 1 != 0)
    }

    /// Whether it is new.
    fn add(&mut self, at: usize) -> bool {
        let new = !self.has(at);
        match self.first.get_mut(at / 64) {
            Some(bits) => *bits |= 1 << (at % 64),
            None => self.others.push(at),
        }
        new
    }
}

/// What a value must be, and what it is.
pub(super) fn must(what: &str, json: Json<'_>) -> Misfit {
    let mut shown = json.to_string();
    if shown.chars().count() > 40 {
        shown = shown.chars().take(40).chain(['…']).collect();
    }
    Misfit::new(format!("must be {what}, not {shown}"))
}

pub(super) fn text(json: Json<'_>) -> Result<&str> {
    json.as_text().ok_or_else(|| must("a string", json))
}

/// Standard or URL-safe, padded or not, as the JSON mapping allows.
pub(super) fn base64(json: Json<'_>) -> Result<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let text = text(json)?;
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|_| must("base64", json))
}

/// A whole number, as a number or a string of one.
pub(super) fn signed<N: TryFrom<i128> + std::fmt::Display + Bounds>(json: Json<'_>) -> Result<N> {
    whole(json).and_then(|n| N::try_from(n).ok()).ok_or_else(|| must(&format!("a whole number from {} to {}", N::LEAST, N::MOST), json))
}

pub(super) fn unsigned<N: TryFrom<i128> + std::fmt::Display + Bounds>(json: Json<'_>) -> Result<N> {
    signed(json)
}

/// The range of a number's type.
pub(super) trait Bounds: Sized {
    const LEAST: Self;
    const MOST: Self;
}

macro_rules! bounds {
    ($($number:ty),*) => { $(impl Bounds for $number { const LEAST: Self = <$number>::MIN; const MOST: Self = <$number>::MAX; })* };
}
bounds!(i32, i64, u32, u64);

fn whole(json: Json<'_>) -> Option<i128> {
    match json.view() {
        View::Signed(n) => Some(n.into()),
        View::Unsigned(n) => Some(n.into()),
        View::Float(n) => exact(n),
        View::Text(s) => s.parse().ok().or_else(|| exact(s.parse().ok()?)),
        _ => None,
    }
}

/// `1e3` and `5.0` are whole numbers too.
fn exact(number: f64) -> Option<i128> {
    (number.fract() == 0.0 && number.abs() < 1e19).then_some(number as i128)
}

pub(super) fn float(json: Json<'_>) -> Result<f64> {
    let number = match json.view() {
        View::Signed(n) => Some(n as f64),
        View::Unsigned(n) => Some(n as f64),
        View::Float(n) => Some(n),
        View::Text(s) => match s {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            other => other.parse().ok(),
        },
        _ => None,
    };
    number.ok_or_else(|| must("a number", json))
}

/// A field whose length is known only when it has been written. Nearly all are so short that one byte tells it, for which there
/// is room; longer ones are moved up.
fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    key(number, WireType::LengthDelimited, out);
    let start = out.len();
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    let more = encoded_len_varint(length as u64) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(start + 1..start + 1 + length, start + 1 + more);
    }
    if let Some(mut prefix) = out.get_mut(start..=start + more) {
        encode_varint(length as u64, &mut prefix);
    }
    Ok(())
}

fn key(number: u32, wire: WireType, out: &mut Vec<u8>) {
    number_of(u64::from(number << 3 | wire as u32), out);
}

/// A varint: nearly all of them have one byte.
fn number_of(value: u64, out: &mut Vec<u8>) {
    match u8::try_from(value) {
        Ok(byte @ 0..=0x7f) => out.push(byte),
        _ => encode_varint(value, out),
    }
}

pub(super) fn delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    key(number, WireType::LengthDelimited, out);
    number_of(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    key(number, WireType::Varint, out);
    number_of(value, out);
}

fn four(number: u32, bytes: [u8; 4], out: &mut Vec<u8>) {
    key(number, WireType::ThirtyTwoBit, out);
    out.extend_from_slice(&bytes);
}

pub(super) fn eight(number: u32, bytes: [u8; 8], out: &mut Vec<u8>) {
    key(number, WireType::SixtyFourBit, out);
    out.extend_from_slice(&bytes);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unknown(shape: &Message, key: &str) -> String {
    let near = lateen_core::similar::nearest(key, shape.fields.iter().map(|f| f.name.as_str()));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("is not a field of {}{hint}", shape.short_name())
}
