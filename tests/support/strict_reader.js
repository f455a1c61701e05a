// Reads YAML texts strictly, by YAML 1.2 and the package `yaml`: a JSON string a line comes in, what is in it goes out.
"use strict";

const path = require("path");
const readline = require("readline");
const YAML = require(path.join(path.resolve(process.argv[2]), "yaml"));

const OPTIONS = { version: "1.2", merge: true, intAsBigInt: true, customTags: (tags) => [...tags, "binary"], logLevel: "silent" };

/** A string without quotes, of which other readers may think that it is a number or a date. */
class Plain {
    constructor(text) {
        this.text = text;
    }
}

function markPlain(document) {
    YAML.visit(document, {
        Scalar(place, node) {
            if (place !== "key" && node.type === "PLAIN" && typeof node.value === "string") node.value = new Plain(node.value);
        },
    });
}

/** Say a value in JSON, with what JSON has no types for as an object with one key. */
function said(value) {
    if (value === null || value === undefined) return null;
    if (value instanceof Plain) return { plain: value.text };
    if (value instanceof Date) return { date: value.toISOString() };
    if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("base64") };
    if (value instanceof Map) return { map: [...value].map(([key, item]) => [said(key), said(item)]) };
    if (Array.isArray(value)) return value.map(said);
    if (typeof value === "bigint") return { int: value.toString() };
    if (typeof value === "number") return { float: Object.is(value, -0) ? "-0.0" : String(value) };
    return value;
}

function read(text) {
    const errors = [];
    const values = [];
    try {
        const documents = YAML.parseAllDocuments(text, OPTIONS);
        for (const document of Array.isArray(documents) ? documents : []) {
            errors.push(...document.errors.map((error) => error.message));
            if (errors.length) break;
            markPlain(document);
            values.push(said(document.toJS({ mapAsMap: true, maxAliasCount: -1 })));
        }
    } catch (error) {
        errors.push(String(error));
    }
    return { errors, values };
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
    process.stdout.write(JSON.stringify(read(JSON.parse(line))) + "\n");
});
