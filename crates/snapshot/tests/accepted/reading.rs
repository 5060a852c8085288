//! What the source says of messages: where one is taken apart, and what is done with each of its fields.
//!
//! Names are followed as the language does: paths through `use`, variables to the innermost pattern that binds them. So it
//! does not matter whether a message is taken apart by `let`, `match`, `if let`, or as a closure's argument, or whether fields
//! of a variable are looked at whose type is written down.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use syn::visit::{self, Visit};

use crate::names::Names;
use crate::shapes::{
    Member, block_refuses, derived, looks_so, member_name, members_in, of_tests, plain, refuses, segments, set_variable, takes_rest,
};

/// What becomes of a field; of one that is dealt with in several places, maybe all three.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fate {
    pub(crate) honoured: bool,
    pub(crate) harmless: bool,
    pub(crate) refused: bool,
}

#[derive(Default)]
pub(crate) struct Read {
    /// Fields of the messages that are taken apart.
    pub(crate) messages: BTreeMap<String, BTreeMap<String, Fate>>,
    /// Members of each `oneof` that a pattern names, or that a pattern for the rest stands for.
    pub(crate) members: BTreeMap<String, BTreeMap<String, Fate>>,
    /// Messages that are looked for in an `Any`.
    pub(crate) opened: BTreeSet<String>,
}

/// Adds what a file of the compiler says.
pub(crate) fn read(source: &str, names: &Names, into: &mut Read) {
    let file = syn::parse_file(source).expect("it compiles");
    let mut reader = Reader { names, read: into, scopes: vec![Scope::default()], uses: Vec::new() };
    reader.uses_of(file.items.iter());
    reader.visit_file(&file);
    reader.settle();
}

/// A field of one pattern, or what a pattern for a member of a `oneof` holds.
struct Use {
    message: String,
    field: String,
    of_member: bool,
    /// Bound to nothing: another place looks at it, or none.
    ignored: bool,
    harmless: bool,
    refused: bool,
}

#[derive(Default)]
struct Scope {
    /// Names that `use` brings.
    paths: HashMap<String, Vec<String>>,
    /// Variables, and the fields that they hold, by their place in `uses`.
    variables: HashMap<String, usize>,
    /// Variables of a type that is written down, and the message that it is.
    typed: HashMap<String, Option<String>>,
}

struct Reader<'a> {
    names: &'a Names,
    read: &'a mut Read,
    scopes: Vec<Scope>,
    uses: Vec<Use>,
}

impl Reader<'_> {
    fn scoped(&mut self, inside: impl FnOnce(&mut Self)) {
        self.scopes.push(Scope::default());
        inside(self);
        self.scopes.pop();
    }

    fn uses_of<'i>(&mut self, items: impl Iterator<Item = &'i syn::Item>) {
        for item in items {
            if let syn::Item::Use(item) = item {
                self.use_tree(&item.tree, &mut Vec::new());
            }
        }
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        let mut bring = |name: String, path: Vec<String>| {
            let path = self.absolute(path);
            self.scopes.last_mut().unwrap().paths.insert(name, path);
        };
        match tree {
            syn::UseTree::Path(path) => {
                before.push(plain(&path.ident));
                self.use_tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Name(name) if name.ident == "self" => bring(before.last().unwrap().clone(), before.clone()),
            syn::UseTree::Name(name) => bring(plain(&name.ident), [before.as_slice(), &[plain(&name.ident)]].concat()),
            syn::UseTree::Rename(name) if name.ident == "self" => bring(plain(&name.rename), before.clone()),
            syn::UseTree::Rename(name) => bring(plain(&name.rename), [before.as_slice(), &[plain(&name.ident)]].concat()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before)),
            syn::UseTree::Glob(_) => {}
        }
    }

    /// The path from the crate's name on.
    fn absolute(&self, mut path: Vec<String>) -> Vec<String> {
        for _ in 0..8 {
            let known = self.scopes.iter().rev().find_map(|scope| scope.paths.get(&path[0]));
            match known {
                Some(known) if known[0] != path[0] || known.len() > 1 => path = [known.as_slice(), &path[1..]].concat(),
                _ => break,
            }
        }
        path
    }

    /// The path below the generated messages.
    fn of_messages(&self, path: &[String]) -> Option<Vec<String>> {
        let path = if path.is_empty() { return None } else { self.absolute(path.to_vec()) };
        path.strip_prefix(&["lateen_proto".to_owned()]).map(<[String]>::to_vec)
    }

    fn full_name(&self, path: &[String]) -> Option<String> {
        Some(self.names.message(&self.of_messages(path)?)?.full_name().to_owned())
    }

    /// A variable, or several in a tuple, of a type that is written down.
    fn is_of(&mut self, pattern: &syn::Pat, of: &syn::Type) {
        match (pattern, of) {
            (pattern, syn::Type::Reference(of)) => self.is_of(pattern, &of.elem),
            (syn::Pat::Tuple(variables), syn::Type::Tuple(types)) => {
                variables.elems.iter().zip(&types.elems).for_each(|(pattern, of)| self.is_of(pattern, of));
            }
            (syn::Pat::Ident(variable), syn::Type::Path(of)) => {
                let message = self.full_name(&segments(&of.path));
                self.scopes.last_mut().unwrap().typed.insert(plain(&variable.ident), message);
            }
            _ => {}
        }
    }

    fn field_of(&mut self, variable: &str) -> Option<&mut Use> {
        let at = *self.scopes.iter().rev().find_map(|scope| scope.variables.get(variable))?;
        self.uses.get_mut(at)
    }

    /// The arguments of `refuse!` and `harmless!`.
    fn marked(&mut self, mac: &syn::Macro, mark: fn(&mut Use)) {
        let list = mac.parse_body_with(syn::punctuated::Punctuated::<syn::Ident, syn::Token![,]>::parse_terminated).expect("fields");
        for name in list {
            if let Some(field) = self.field_of(&plain(&name)) {
                mark(field);
            }
        }
    }

    /// What a `match` does with the members of a `oneof` that its arms name, and with the others.
    fn decided(&mut self, arms: &[(&syn::Pat, bool)]) {
        let mut named = BTreeMap::<String, (BTreeSet<String>, BTreeMap<String, Fate>)>::new();
        let mut rest_refused = false;
        for (pattern, refused) in arms {
            for Member { oneof, all, name, whole } in members_in(pattern, |path| self.member(path)) {
                let fate = named.entry(oneof).or_insert_with(|| (all, BTreeMap::new())).1.entry(name).or_default();
                fate.honoured |= !refused;
                // What is refused after it was taken is some of its values.
                fate.refused |= *refused && whole && !fate.honoured;
            }
            rest_refused |= takes_rest(pattern) && *refused;
        }
        for (oneof, (all, mut named)) in named {
            if rest_refused {
                let refused = Fate { refused: true, ..Fate::default() };
                named = all.into_iter().map(|name| (name, refused)).chain(named).collect();
            }
            let known = self.read.members.entry(oneof).or_default();
            for (name, Fate { honoured, refused, .. }) in named {
                let fate = known.entry(name).or_default();
                fate.honoured |= honoured;
                fate.refused |= refused;
            }
        }
    }

    fn member(&self, path: &syn::Path) -> Option<Member> {
        let (oneof, name) = self.names.member(&self.of_messages(&segments(path))?)?;
        let all = oneof.fields().map(|f| f.name().to_owned()).collect();
        Some(Member { oneof: oneof.full_name().to_owned(), all, name, whole: true })
    }

    /// Fields of the patterns of this file, now that everything that is done with them has been seen.
    fn settle(self) {
        for Use { message, field, of_member, ignored, harmless, refused } in self.uses {
            if of_member {
                if harmless {
                    let fates = self.read.members.entry(message).or_default();
                    fates.insert(field, Fate { harmless, ..Fate::default() });
                }
                continue;
            }
            let fate = self.read.messages.entry(message).or_default().entry(field).or_default();
            fate.honoured |= !ignored && !harmless && !refused;
            fate.harmless |= harmless && !refused;
            fate.refused |= refused;
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !of_tests(&item.attrs) {
            self.scoped(|s| {
                s.uses_of(item.content.iter().flat_map(|(_, items)| items));
                visit::visit_item_mod(s, item);
            });
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !of_tests(&item.attrs) {
            self.scoped(|s| visit::visit_item_fn(s, item));
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !of_tests(&item.attrs) {
            self.scoped(|s| visit::visit_impl_item_fn(s, item));
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let items = block.stmts.iter().filter_map(|s| if let syn::Stmt::Item(item) = s { Some(item) } else { None });
        self.scoped(|s| {
            s.uses_of(items);
            visit::visit_block(s, block);
        });
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        // What is bound counts from here on, not in the value.
        if let Some(init) = &local.init {
            self.visit_expr(&init.expr);
            if let Some((_, otherwise)) = &init.diverge {
                self.visit_expr(otherwise);
                let rest = syn::Pat::Wild(syn::PatWild { attrs: Vec::new(), underscore_token: <syn::Token![_]>::default() });
                self.decided(&[(&local.pat, false), (&rest, refuses(otherwise))]);
            }
        }
        match derived(local).and_then(|name| Some((*self.scopes.iter().rev().find_map(|s| s.variables.get(&name))?, name))) {
            Some((at, name)) => drop(self.scopes.last_mut().unwrap().variables.insert(name, at)),
            None => self.visit_pat(&local.pat),
        }
    }

    fn visit_expr_match(&mut self, expr: &'ast syn::ExprMatch) {
        // An arm that refuses some values only says nothing of the member.
        let arms = expr.arms.iter().filter(|arm| arm.guard.is_none() || !refuses(&arm.body));
        self.decided(&arms.map(|arm| (&arm.pat, refuses(&arm.body))).collect::<Vec<_>>());
        visit::visit_expr_match(self, expr);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.scoped(|s| visit::visit_arm(s, arm));
    }

    fn visit_expr_closure(&mut self, closure: &'ast syn::ExprClosure) {
        for input in &closure.inputs {
            self.decided(&[(input, false)]);
        }
        self.scoped(|s| visit::visit_expr_closure(s, closure));
    }

    fn visit_expr_if(&mut self, expr: &'ast syn::ExprIf) {
        if block_refuses(&expr.then_branch)
            && let Some(field) = set_variable(&expr.cond).and_then(|variable| self.field_of(&variable))
        {
            field.refused = true;
        }
        self.scoped(|s| {
            s.visit_expr(&expr.cond);
            s.visit_block(&expr.then_branch);
        });
        if let Some((_, otherwise)) = &expr.else_branch {
            self.visit_expr(otherwise);
        }
    }

    fn visit_expr_let(&mut self, expr: &'ast syn::ExprLet) {
        self.decided(&[(&expr.pat, false)]);
        visit::visit_expr_let(self, expr);
    }

    fn visit_pat_struct(&mut self, pattern: &'ast syn::PatStruct) {
        let message = self.of_messages(&segments(&pattern.path)).and_then(|path| self.names.message(&path)).cloned();
        let Some(message) = message else { return visit::visit_pat_struct(self, pattern) };
        let name = message.full_name().to_owned();
        self.read.messages.entry(name.clone()).or_default();
        for field in &pattern.fields {
            let at = self.uses.len();
            let ignored = matches!(&*field.pat, syn::Pat::Wild(_));
            self.uses.push(Use {
                message: name.clone(),
                field: member_name(&field.member),
                of_member: false,
                ignored,
                harmless: false,
                refused: false,
            });
            if let syn::Pat::Ident(variable) = &*field.pat {
                self.scopes.last_mut().unwrap().variables.insert(plain(&variable.ident), at);
            } else {
                self.visit_pat(&field.pat);
            }
        }
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        // A variable of this name from here on holds something else.
        let scope = self.scopes.last_mut().unwrap();
        scope.variables.insert(plain(&pattern.ident), usize::MAX);
        scope.typed.insert(plain(&pattern.ident), None);
    }

    fn visit_pat_type(&mut self, pattern: &'ast syn::PatType) {
        visit::visit_pat_type(self, pattern);
        self.is_of(&pattern.pat, &pattern.ty);
    }

    fn visit_pat_tuple_struct(&mut self, pattern: &'ast syn::PatTupleStruct) {
        visit::visit_pat_tuple_struct(self, pattern);
        let path = self.of_messages(&segments(&pattern.path));
        if let (Some(path), Some(syn::Pat::Ident(variable))) = (path, pattern.elems.first())
            && let Some((oneof, member)) = self.names.member(&path)
        {
            let (oneof, at, name) = (oneof.full_name().to_owned(), self.uses.len(), plain(&variable.ident));
            self.uses.push(Use { message: oneof, field: member, of_member: true, ignored: false, harmless: false, refused: false });
            let message = self.names.message_of_member(&path);
            let scope = self.scopes.last_mut().unwrap();
            scope.variables.insert(name.clone(), at);
            scope.typed.insert(name, message);
        }
    }

    fn visit_expr_field(&mut self, expr: &'ast syn::ExprField) {
        let variable = if let syn::Expr::Path(path) = &*expr.base { path.path.get_ident().map(plain) } else { None };
        let message = variable.and_then(|v| self.scopes.iter().rev().find_map(|scope| scope.typed.get(&v)).cloned().flatten());
        if let Some(message) = message {
            self.uses.push(Use {
                message,
                field: member_name(&expr.member),
                of_member: false,
                ignored: false,
                harmless: false,
                refused: false,
            });
        }
        visit::visit_expr_field(self, expr);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        match mac.path.segments.last().map(|s| s.ident.to_string()).as_deref() {
            Some("refuse") => self.marked(mac, |field| field.refused = true),
            Some("harmless") => self.marked(mac, |field| field.harmless = true),
            Some("matches") => {
                let parts = mac.parse_body_with(|input: syn::parse::ParseStream<'_>| {
                    let value: syn::Expr = input.parse()?;
                    input.parse::<syn::Token![,]>()?;
                    let pattern = syn::Pat::parse_multi_with_leading_vert(input)?;
                    if input.parse::<Option<syn::Token![if]>>()?.is_some() {
                        input.parse::<syn::Expr>()?;
                    }
                    input.parse::<Option<syn::Token![,]>>()?;
                    Ok((value, pattern))
                });
                let (value, pattern) = parts.expect("matches!");
                self.visit_expr(&value);
                self.decided(&[(&pattern, false)]);
                self.scoped(|s| s.visit_pat(&pattern));
            }
            _ => {
                let list = mac.parse_body_with(syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated);
                list.into_iter().flatten().for_each(|e| self.visit_expr(&e));
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let last = path.segments.last().unwrap();
        if ["is", "open", "open_apart", "check", "decode", "pack"].contains(&last.ident.to_string().as_str())
            && let syn::PathArguments::AngleBracketed(arguments) = &last.arguments
        {
            for argument in &arguments.args {
                if let syn::GenericArgument::Type(syn::Type::Path(t)) = argument {
                    self.read.opened.extend(self.full_name(&segments(&t.path)));
                }
            }
        }
        if ["decode", "full_name"].contains(&last.ident.to_string().as_str()) {
            let owner = segments(path);
            self.read.opened.extend(self.full_name(&owner[..owner.len() - 1]));
        }
        visit::visit_path(self, path);
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        let text = text.value();
        let name = text.rsplit('/').next().unwrap_or_default();
        if self.names.message(&name.split('.').map(str::to_owned).collect::<Vec<_>>()).is_some_and(|m| m.full_name() == name)
            || looks_so(name)
        {
            self.read.opened.insert(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
