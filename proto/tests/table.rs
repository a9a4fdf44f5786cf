//! Holds `cri-v1.proto` against the table of the API's facts, both ways: every
//! line of the table is in the file, and nothing else is.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const TABLE: &str = include_str!("cri-v1.tsv");

fn short(name: &str) -> String {
    name.trim_start_matches(".runtime.v1.").to_owned()
}

fn scalar(kind: Type, name: &str) -> String {
    match kind {
        Type::String => "string".into(),
        Type::Bytes => "bytes".into(),
        Type::Bool => "bool".into(),
        Type::Double => "double".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Uint32 => "uint32".into(),
        Type::Uint64 => "uint64".into(),
        Type::Message | Type::Enum => short(name),
        other => panic!("a type the API does not use: {other:?}"),
    }
}

fn field_line(owner: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = scalar(field.r#type(), field.type_name());
    let entry = owner.nested_type.iter().find(|nested| {
        let map = nested
            .options
            .as_ref()
            .is_some_and(|options| options.map_entry());
        map && kind.ends_with(&format!(".{}", nested.name()))
    });
    let (kind, repeated) = match entry {
        Some(entry) => {
            let part = |at: usize| scalar(entry.field[at].r#type(), entry.field[at].type_name());
            (format!("map<{},{}>", part(0), part(1)), false)
        }
        None => (kind, field.label() == Label::Repeated),
    };
    let deprecated = field
        .options
        .as_ref()
        .is_some_and(|options| options.deprecated());
    let flags = [(repeated, "repeated"), (deprecated, "deprecated")];
    let flags: Vec<_> = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    let flags = flags.join(",");
    format!(
        "msg\t{}\t{}\t{}\t{kind}\t{flags}",
        owner.name(),
        field.name(),
        field.number()
    )
}

fn enum_lines(prefix: &str, item: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &item.value {
        let (name, number) = (value.name(), value.number());
        lines.insert(format!("enum\t{prefix}{}\t{name}\t{number}", item.name()));
    }
}

#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
fn lines_of_the_proto() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("descriptors decode");
    let mut lines = BTreeSet::new();
    for file in &set.file {
        assert_eq!(file.package(), "runtime.v1");
        for service in &file.service {
            for rpc in &service.method {
                let kind = if rpc.server_streaming() {
                    "server-stream"
                } else {
                    "unary"
                };
                let (input, output) = (short(rpc.input_type()), short(rpc.output_type()));
                let name = format!("{}.{}", service.name(), rpc.name());
                lines.insert(format!("rpc\t{name}\t{input}\t{output}\t{kind}"));
            }
        }
        for item in &file.enum_type {
            enum_lines("", item, &mut lines);
        }
        for message in &file.message_type {
            for item in &message.enum_type {
                enum_lines(&format!("{}.", message.name()), item, &mut lines);
            }
            if message.field.is_empty() {
                lines.insert(format!("msg\t{}\t-\t-\t-", message.name()));
            }
            lines.extend(message.field.iter().map(|field| field_line(message, field)));
        }
    }
    lines
}

#[test]
fn every_rpc_field_number_and_type_is_that_of_the_table() {
    // An empty last column leaves a tab at the end of a line; which one is a line
    // without flags, and that is how such a line is made here too.
    let table: BTreeSet<String> = TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.ends_with("-\t-\t-\t") {
            true => line.trim_end().to_owned(),
            false => line.to_owned(),
        })
        .collect();
    let ours = lines_of_the_proto();
    let missing: Vec<_> = table.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:#?}\nextra {extra:#?}"
    );
    assert_eq!(
        ours.iter().filter(|line| line.starts_with("rpc")).count(),
        43
    );
}

#[test]
fn an_environment_value_need_not_be_utf8() {
    let pair = proto::v1::KeyValue {
        key: "K".into(),
        value: vec![0xff, 0xfe],
    };
    let back = proto::v1::KeyValue::decode(pair.encode_to_vec().as_slice()).expect("decodes");
    assert_eq!(back.value, [0xff, 0xfe]);
}
