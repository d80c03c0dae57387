package policy

import (
	"maps"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// Many servers do not tell the letters of a path apart by case. Nobody here knows which do, so that a rule does not depend on it: one that
// denies or holds does so when its condition holds for the path as it was sent or in any case, one that allows when it holds for both.

// Fold makes one of texts that differ in letter case alone, for whatever server takes them for the same.
func Fold(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 { // ſ and the Kelvin sign are an s and a k
			return strings.Map(func(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }, s)
		}
	}
	return strings.ToLower(s)
}

// folded is the condition in any letter case, for a path that Fold has made; changed reports whether it is another one than tree. It is
// nil for a condition that no letter case matters to, one that minds it by itself, and one that compares the path with another fact.
func folded(tree *cel.Ast) (inAnyCase *cel.Ast, changed bool, err error) {
	checked, err := cel.AstToCheckedExpr(tree) // of which the copy is made
	if err != nil {
		return nil, false, err
	}
	inAnyCase = cel.CheckedExprToAst(checked)
	f := folder{tree: inAnyCase.NativeRep(), scope: map[string]binding{"path": {ofPath: true}}}
	f.lastID = celast.MaxID(f.tree)
	f.fold(f.tree.Expr())
	if !f.found || f.minded {
		return nil, false, nil
	}
	return inAnyCase, f.changed, nil
}

// folder changes the texts that a condition compares a path with.
type folder struct {
	tree    *celast.AST
	lastID  int64 // of an expression
	scope   map[string]binding
	found   bool // something is the path
	minded  bool // nothing is to be changed
	changed bool
}

// binding is what a variable stands for.
type binding struct {
	ofPath bool     // the path, or parts of it
	texts  []string // one of these, which are written in the condition; nil: something else
}

// fold reports whether e is text made of the path.
func (f *folder) fold(e celast.Expr) bool {
	some := false
	switch e.Kind() {
	case celast.IdentKind:
		some = f.scope[e.AsIdent()].ofPath
		f.found = f.found || some
	case celast.SelectKind:
		some = f.fold(e.AsSelect().Operand())
	case celast.ListKind:
		some = f.all(e.AsList().Elements(), nil)
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			key, value := f.fold(entry.AsMapEntry().Key()), f.fold(entry.AsMapEntry().Value())
			f.minded = f.minded || key || value
		}
	case celast.ComprehensionKind:
		some = f.comprehension(e.AsComprehension())
	case celast.CallKind:
		some = f.call(e.AsCall())
	default: // a constant
	}
	return some && f.canBeText(e)
}

// canBeText is false for numbers, and for what is true or false.
func (f *folder) canBeText(e celast.Expr) bool {
	kind := f.tree.GetType(e.ID()).Kind()
	return kind != types.BoolKind && kind != types.IntKind
}

// all folds each, and reports whether some are made of the path; the others are then changed. One of them may be a pattern.
func (f *folder) all(list []celast.Expr, pattern celast.Expr) bool {
	var others []celast.Expr
	for _, e := range list {
		if !f.fold(e) {
			others = append(others, e)
		}
	}
	if len(others) == len(list) {
		return false
	}
	for _, o := range others {
		f.text(o, o == pattern)
	}
	return true
}

func (f *folder) call(c celast.CallExpr) bool {
	operands := c.Args()
	if c.IsMemberFunction() {
		operands = append([]celast.Expr{c.Target()}, operands...)
	}
	var pattern celast.Expr
	if c.FunctionName() == overloads.Matches {
		pattern = operands[1]
	}
	some := f.all(operands, pattern)
	if name := c.FunctionName(); some && (name == "lowerAscii" || name == "upperAscii") {
		f.minded = true
	}
	return some
}

// comprehension folds what a macro stands for: a loop over a range, or (optMap) a name for AccuInit in Result.
func (f *folder) comprehension(c celast.ComprehensionExpr) bool {
	outer := f.scope
	defer func() { f.scope = outer }()
	over, start := f.fold(c.IterRange()), c.AccuInit()
	gathers := over && start.Kind() == celast.ListKind // map and filter, which start with none
	accu, item := binding{ofPath: f.fold(start) || gathers}, binding{ofPath: over, texts: written(c.IterRange())}
	f.scope = maps.Clone(outer)
	f.scope[c.AccuVar()], f.scope[c.IterVar()], f.scope[c.IterVar2()] = accu, item, item
	f.fold(c.LoopCondition())
	f.fold(c.LoopStep())
	return f.fold(c.Result())
}

// written returns the texts of which e is a list, nil if it has others than those the condition spells out.
func written(e celast.Expr) (texts []string) {
	if e.Kind() != celast.ListKind {
		return nil
	}
	for _, element := range e.AsList().Elements() {
		text, ok := literal(element)
		if !ok {
			return nil
		}
		texts = append(texts, text)
	}
	return texts
}

// literal returns a text that the condition spells out, in one piece or several.
func literal(e celast.Expr) (text string, ok bool) {
	if e.Kind() == celast.LiteralKind {
		text, ok := e.AsLiteral().(types.String)
		return string(text), ok
	}
	if e.Kind() != celast.CallKind || e.AsCall().FunctionName() != operators.Add {
		return "", false
	}
	left, ok := literal(e.AsCall().Args()[0])
	right, alsoOK := literal(e.AsCall().Args()[1])
	return left + right, ok && alsoOK
}

// text changes what a path is compared with.
func (f *folder) text(e celast.Expr, pattern bool) {
	if !f.canBeText(e) {
		return
	}
	if text, ok := literal(e); ok {
		e.SetKindCase(celast.NewExprFactory().NewLiteral(e.ID(), f.inAnyCase(text, pattern)))
		return
	}
	switch e.Kind() {
	case celast.LiteralKind: // of another type
		return
	case celast.ListKind:
		for _, element := range e.AsList().Elements() {
			f.text(element, pattern)
		}
		return
	case celast.IdentKind:
		if texts := f.scope[e.AsIdent()].texts; texts != nil {
			f.lookUp(e, texts, pattern)
			return
		}
	case celast.CallKind:
		c := e.AsCall()
		name, takesNothing := c.FunctionName(), len(c.Args()) == 0 && !c.IsMemberFunction() // optional.none()
		if takesNothing || name == operators.Conditional || name == operators.Add && !pattern {
			for _, part := range c.Args() {
				f.text(part, pattern)
			}
			return
		}
	default: // not written in the condition
	}
	f.minded = true
}

// lookUp has the variable e, which is one of texts, changed here alone: p becomes {"/A": "/a"}[p]. Elsewhere in its loop it may be
// compared with something else.
func (f *folder) lookUp(e celast.Expr, texts []string, pattern bool) {
	id := func() int64 { f.lastID++; return f.lastID }
	build := celast.NewExprFactory()
	var entries []celast.EntryExpr
	for _, text := range slices.Compact(slices.Sorted(slices.Values(texts))) {
		key, value := build.NewLiteral(id(), types.String(text)), build.NewLiteral(id(), f.inAnyCase(text, pattern))
		entries = append(entries, build.NewMapEntry(id(), key, value, false))
	}
	variable := build.NewIdent(id(), e.AsIdent())
	e.SetKindCase(build.NewCall(e.ID(), operators.Index, build.NewMap(id(), entries), variable))
}

// inAnyCase returns what a path that Fold has made is compared with instead of text.
func (f *folder) inAnyCase(text string, pattern bool) types.String {
	other := Fold(text)
	if pattern {
		other = "(?i)" + text
		re, err := syntax.Parse(text, syntax.Perl)
		f.minded = f.minded || err != nil || aboutCase(re)
	}
	f.changed = f.changed || other != text
	return types.String(other)
}

// aboutCase reports whether a pattern asks for upper case: one of its classes has A-Z and nothing of a-z. A class of small letters
// alone is what most write for "letters".
func aboutCase(re *syntax.Regexp) bool {
	if re.Op == syntax.OpCharClass {
		upper, lower := false, false
		for i := 0; i < len(re.Rune); i += 2 {
			from, to := re.Rune[i], re.Rune[i+1]
			upper = upper || from <= 'A' && to >= 'Z'
			lower = lower || from <= 'z' && to >= 'a'
		}
		return upper && !lower
	}
	return slices.ContainsFunc(re.Sub, aboutCase)
}
