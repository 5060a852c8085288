//! Messages that several kinds share.
use std::fmt;

use lateen_core::Labels;

use crate::schema::{Context, Decode, Shape};
use crate::yaml::{Node, Value};

message! {
    /// A port by its number.
    pub struct PortSelector "PortSelector" {
        number: u16 = honoured,
        name: Option<String> = refused("was removed from Istio; give the port's number"),
    }
}

message! {
    /// `istio.type.v1beta1.WorkloadSelector`: pods by their labels, all of which must match.
    pub struct WorkloadSelector "WorkloadSelector" {
        match_labels: Labels = honoured,
    }
}

/// A condition on a text. Written as a mapping with one of `exact`, `prefix`, `regex`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// `{}`: anything, so long as it is there. Istio gives it this meaning for headers and query parameters.
    #[default]
    Present,
    Exact(String),
    /// A plain prefix of the text: `/foo` matches `/foobar`.
    Prefix(String),
    /// RE2 syntax; the whole text must match.
    Regex(String),
}

message! {
    /// The written form of [`StringMatch`].
    pub struct StringMatchFields "StringMatch" {
        exact: Option<RawText> = honoured,
        prefix: Option<RawText> = honoured,
        regex: Option<RawText> = honoured,
    }
    oneof [exact, prefix, regex]
}

/// A string whose emptiness means something (`prefix: ""` matches all texts).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawText(pub String);

impl Decode for RawText {
    fn shape() -> Shape {
        String::shape()
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        String::decode(node, cx).map(Self)
    }
}

impl Decode for StringMatch {
    fn shape() -> Shape {
        StringMatchFields::shape()
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        if let Value::String(text) = &node.value {
            let suggestion = format!("write `exact: {text}`, `prefix: {text}` or `regex: …` under it");
            cx.error_with(node.at, format!("wants a mapping (StringMatch), not the string {text:?}"), suggestion);
            return None;
        }
        let fields = StringMatchFields::decode(node, cx)?;
        Some(match (fields.exact, fields.prefix, fields.regex) {
            (Some(text), _, _) => Self::Exact(text.0),
            (_, Some(text), _) => Self::Prefix(text.0),
            (_, _, Some(text)) => Self::Regex(text.0),
            _ => Self::Present,
        })
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("is present"),
            Self::Exact(text) => write!(f, "is {text:?}"),
            Self::Prefix(text) => write!(f, "starts with {text:?}"),
            Self::Regex(text) => write!(f, "matches /{text}/"),
        }
    }
}

/// A share of requests, 0 to 100. Written as `{value: 12.5}`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percent(pub f64);

message! {
    /// The written form of [`Percent`].
    pub struct PercentFields "Percent" {
        value: f64 = honoured,
    }
}

impl Decode for Percent {
    fn shape() -> Shape {
        PercentFields::shape()
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        if let Value::Number(number) = &node.value {
            cx.error_with(
                node.at,
                format!("wants a mapping (Percent), not the number `{}`", number.text),
                format!("write `value: {}` on a line of its own under it", number.text),
            );
            return None;
        }
        PercentFields::decode(node, cx).map(|fields| Self(fields.value))
    }
}

message! {
    /// The label selector of Kubernetes: all labels and all expressions must match.
    pub struct LabelSelector "LabelSelector" tolerant {
        match_labels: Labels = honoured,
        match_expressions: Vec<LabelSelectorRequirement> = honoured,
    }
}

message! {
    /// One condition of a [`LabelSelector`].
    pub struct LabelSelectorRequirement "LabelSelectorRequirement" {
        key: String = honoured,
        operator: SelectorOperator = honoured,
        values: Vec<String> = honoured,
    }
}

enumeration! {
    /// How a label is compared.
    pub enum SelectorOperator {
        In = "In",
        NotIn = "NotIn",
        Exists = "Exists",
        DoesNotExist = "DoesNotExist",
    }
}

impl LabelSelector {
    /// Whether the labels satisfy the selector; an empty selector matches everything.
    pub fn matches(&self, labels: &Labels) -> bool {
        lateen_core::selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                let listed = value.is_some_and(|value| requirement.values.contains(value));
                match requirement.operator {
                    SelectorOperator::In => listed,
                    SelectorOperator::NotIn => !listed,
                    SelectorOperator::Exists => value.is_some(),
                    SelectorOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}
