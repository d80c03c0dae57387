package console

import (
	"log/slog"
	"time"

	"wayleave/api"
	"wayleave/logs"
	"wayleave/operate"
)

// How long an operator may have more or less logged than the file says.
const (
	logsFor     = 10 * time.Minute
	logsLongest = 24 * time.Hour
)

func (s *Server) showLog(*call) (any, error) {
	if s.Levels == nil {
		return nil, &operate.Refusal{Kind: operate.NotNow, Words: "what this gate logs cannot be changed while it runs"}
	}
	out := api.LogLevels{Parts: map[string]api.LogLevel{}}
	for _, part := range logs.Parts {
		level, until := s.Levels.Of(part)
		out.Parts[part] = api.LogLevel{Level: logs.Name(level), Until: until}
	}
	return out, nil
}

func (s *Server) setLog(c *call) (any, error) {
	in := c.in.(*api.LogRequest)
	lasts, err := logTime(in.For)
	if err != nil {
		return nil, err
	}
	if s.Levels == nil {
		return s.showLog(c)
	}
	levels := map[string]slog.Level{}
	for part, name := range in.Levels {
		if part != "" {
			err = logs.Check(part)
		}
		if err == nil {
			levels[part], err = logs.Parse(name)
		}
		if err != nil {
			return nil, &operate.Refusal{Kind: operate.Misused, Words: err.Error()}
		}
	}
	if len(levels) == 0 {
		s.Levels.Forget()
	}
	if level, all := levels[""]; all { // first, since it is of those without one of their own
		s.Levels.Ask("", level, lasts)
		delete(levels, "")
	}
	for part, level := range levels {
		s.Levels.Ask(part, level, lasts)
	}
	return s.showLog(c)
}

// logTime reads how long levels last.
func logTime(text string) (time.Duration, error) {
	if text == "" {
		return logsFor, nil
	}
	lasts, err := time.ParseDuration(text)
	if err != nil || lasts <= 0 || lasts > logsLongest {
		return 0, &operate.Refusal{Kind: operate.Misused, Words: "for is not a time from 1s to 24h, such as 10m"}
	}
	return lasts, nil
}
