// A small reader of JSON, enough for the self-check capsule: objects, arrays, strings, numbers, true, false, null.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace equipot {

class Json {
 public:
  // Throws std::runtime_error if the text is not JSON.
  static Json parse(const std::string& text) {
    Reader reader{text.c_str(), text.c_str() + text.size()};
    Json value = reader.value();
    reader.blanks();
    if (reader.at != reader.end) reader.fail("the end");
    return value;
  }

  // Member of an object; throws if there is none.
  const Json& operator[](const std::string& key) const {
    const auto found = members.find(key);
    if (found == members.end()) throw std::runtime_error("JSON: no member '" + key + "'");
    return found->second;
  }

  bool has(const std::string& key) const { return members.count(key) != 0; }

  // All numbers below this value, in order: an array of any shape, flattened. True is 1, false 0.
  template <class T>
  std::vector<T> numbers() const {
    std::vector<T> flat;
    collect(flat);
    return flat;
  }

  std::vector<Json> items;  // of an array
  std::map<std::string, Json> members;  // of an object
  std::string text;
  double number = 0;
  bool is_number = false;

 private:
  template <class T>
  void collect(std::vector<T>& flat) const {
    if (is_number) flat.push_back(static_cast<T>(number));
    for (const Json& item : items) item.collect(flat);
  }

  struct Reader {
    const char* at;
    const char* end;
    int depth = 0;

    [[noreturn]] void fail(const std::string& expected) const { throw std::runtime_error("JSON: expected " + expected); }

    void blanks() {
      while (at != end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) ++at;
    }

    bool take(char wanted) {
      blanks();
      if (at == end || *at != wanted) return false;
      ++at;
      return true;
    }

    bool take(const std::string& word) {
      if (static_cast<size_t>(end - at) < word.size() || std::string(at, word.size()) != word) return false;
      at += word.size();
      return true;
    }

    Json value() {
      if (++depth > 64) fail("fewer levels");
      Json json = value_here();
      --depth;
      return json;
    }

    Json value_here() {
      blanks();
      if (at == end) fail("a value");
      if (*at == '{') return object();
      if (*at == '[') return array();
      Json json;
      if (*at == '"') {
        json.text = string();
      } else if (take("null")) {
      } else {
        json.is_number = true;
        json.number = take("true") ? 1 : take("false") ? 0 : digits();
      }
      return json;
    }

    double digits() {
      char* after = nullptr;
      const double found = std::strtod(at, &after);  // the text ends with a null byte
      if (after == at) fail("a number");
      at = after;
      return found;
    }

    // Escapes are kept as they are written: names need none.
    std::string string() {
      if (!take('"')) fail("'\"'");
      std::string found;
      while (at != end && *at != '"') {
        if (*at == '\\' && at + 1 != end) found += *at++;
        found += *at++;
      }
      if (!take('"')) fail("'\"'");
      return found;
    }

    Json array() {
      Json json;
      take('[');
      if (take(']')) return json;
      do json.items.push_back(value());
      while (take(','));
      if (!take(']')) fail("']'");
      return json;
    }

    Json object() {
      Json json;
      take('{');
      if (take('}')) return json;
      do {
        blanks();
        const std::string key = string();
        if (!take(':')) fail("':'");
        json.members[key] = value();
      } while (take(','));
      if (!take('}')) fail("'}'");
      return json;
    }
  };
};

}  // namespace equipot
