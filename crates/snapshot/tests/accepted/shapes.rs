//! What single patterns and expressions of Rust amount to.
use std::collections::BTreeSet;

use syn::visit::{self, Visit};

/// A member of a `oneof` that a pattern names.
pub(crate) struct Member {
    pub(crate) oneof: String,
    pub(crate) all: BTreeSet<String>,
    pub(crate) name: String,
    /// With every value that it may have.
    pub(crate) whole: bool,
}

/// Those that a pattern names, `known` telling the ones that are such.
pub(crate) fn members_in(pattern: &syn::Pat, known: impl Fn(&syn::Path) -> Option<Member>) -> Vec<Member> {
    struct Members<F>(F, Vec<Member>);
    impl<'ast, F: Fn(&syn::Path) -> Option<Member>> Visit<'ast> for Members<F> {
        fn visit_pat_tuple_struct(&mut self, pattern: &'ast syn::PatTupleStruct) {
            let member = (self.0)(&pattern.path);
            self.1.extend(member.map(|member| Member { whole: pattern.elems.iter().all(always), ..member }));
            visit::visit_pat_tuple_struct(self, pattern);
        }
    }
    let mut members = Members(known, Vec::new());
    members.visit_pat(pattern);
    members.1
}

/// Whether a pattern takes every value.
pub(crate) fn always(pattern: &syn::Pat) -> bool {
    matches!(pattern, syn::Pat::Wild(_) | syn::Pat::Rest(_) | syn::Pat::Struct(_))
        || matches!(pattern, syn::Pat::Ident(p) if p.subpat.is_none())
}

/// `_`, a variable, or `Some` of one: every member that is not named before.
pub(crate) fn takes_rest(pattern: &syn::Pat) -> bool {
    match pattern {
        syn::Pat::TupleStruct(some) => {
            some.path.is_ident("Some") && some.elems.iter().all(|p| !matches!(p, syn::Pat::Struct(_)) && always(p))
        }
        syn::Pat::Or(or) => or.cases.iter().any(takes_rest),
        syn::Pat::Struct(_) => false,
        pattern => always(pattern),
    }
}

/// Whether an expression can only be a refusal.
pub(crate) fn refuses(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Return(r) => r.expr.as_deref().is_some_and(refuses),
        syn::Expr::Block(block) => block_refuses(&block.block),
        syn::Expr::MethodCall(call) => call.method.to_string().starts_with("within") && refuses(&call.receiver),
        syn::Expr::Call(call) => matches!(&*call.func, syn::Expr::Path(path) if path.path.is_ident("Err")),
        _ => false,
    }
}

pub(crate) fn block_refuses(block: &syn::Block) -> bool {
    matches!(block.stmts.last(), Some(syn::Stmt::Expr(expr, _)) if refuses(expr))
}

/// The variable whose being set is the whole condition.
pub(crate) fn set_variable(condition: &syn::Expr) -> Option<String> {
    let variable = |expr: &syn::Expr| match expr {
        syn::Expr::Path(path) => path.path.get_ident().map(plain),
        _ => None,
    };
    match condition {
        syn::Expr::MethodCall(call) if call.method == "is_some" || call.method == "is_set" => variable(&call.receiver),
        syn::Expr::Unary(not) => match &*not.expr {
            syn::Expr::MethodCall(call) if call.method == "is_empty" => variable(&call.receiver),
            _ => None,
        },
        syn::Expr::Let(binding) => match (&*binding.pat, &*binding.expr) {
            (syn::Pat::TupleStruct(some), syn::Expr::Reference(r)) if some.path.is_ident("Some") && some.elems.iter().all(always) => {
                variable(&r.expr)
            }
            (syn::Pat::TupleStruct(some), expr) if some.path.is_ident("Some") && some.elems.iter().all(always) => variable(expr),
            _ => None,
        },
        expr => variable(expr),
    }
}

/// The variable that takes the place of one of the same name, and holds what was made of it.
pub(crate) fn derived(local: &syn::Local) -> Option<String> {
    let syn::Pat::Ident(variable) = &local.pat else { return None };
    let mut from = &*local.init.as_ref()?.expr;
    loop {
        match from {
            syn::Expr::MethodCall(call) => from = &call.receiver,
            syn::Expr::Try(question) => from = &question.expr,
            _ => break,
        }
    }
    let name = plain(&variable.ident);
    matches!(from, syn::Expr::Path(path) if path.path.is_ident(&name)).then_some(name)
}

pub(crate) fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|s| plain(&s.ident)).collect()
}

pub(crate) fn plain(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

pub(crate) fn of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|i| i == "test"))
}

/// Whether a text is the name of a message that is not among ours.
pub(crate) fn looks_so(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    name.starts_with("envoy.")
        && name.contains(".v3.")
        && last.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_')
}

pub(crate) fn member_name(member: &syn::Member) -> String {
    match member {
        syn::Member::Named(ident) => plain(ident),
        syn::Member::Unnamed(index) => index.index.to_string(),
    }
}
