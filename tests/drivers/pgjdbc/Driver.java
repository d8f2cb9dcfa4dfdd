// pgjdbc: one step a line, see program.py.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.Array;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;

public final class Driver {
    private interface Step {
        void run() throws Exception;
    }

    // Nanoseconds; nothing here takes that long on a machine that is alive.
    private static final long PATIENCE = 20_000_000_000L;

    private final String url;
    private final String user;
    // The session that the steps are about, and one that notifies and looks on.
    private final Connection client;
    private final Connection other;
    // Prepared once, used ever since.
    private final PreparedStatement kept;
    private int sent;
    private int fresh;

    private Driver(String port, String user) throws SQLException {
        this.url = "jdbc:postgresql://127.0.0.1:" + port + "/postgres";
        this.user = user;
        client = open("extended");
        other = open("simple");
        kept = client.prepareStatement("SELECT ?::int + 1 AS n, ?::text AS t");
        execute("SET statement_timeout = '55s'");
        execute("SET TIME ZONE 'Asia/Tokyo'");
        execute("SET search_path = \"$user\", pg_catalog");
        execute("LISTEN news");
        execute("PREPARE by_sql (int) AS SELECT $1 * 2 AS n");
    }

    private Connection open(String protocol) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", user);
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "disable");
        properties.setProperty("preferQueryMode", protocol);
        properties.setProperty("ApplicationName", "pgjdbc");
        // Every statement gets a name at its second use, and is answered in binary then.
        properties.setProperty("prepareThreshold", "1");
        properties.setProperty("reWriteBatchedInserts", "true");
        return DriverManager.getConnection(url, properties);
    }

    private static void equal(Object expected, Object found) {
        if (!Objects.deepEquals(expected, found)) {
            throw new AssertionError("expected " + expected + ", found " + found);
        }
    }

    private static void refused(String state, Step what) throws Exception {
        try {
            what.run();
        } catch (SQLException error) {
            if (state.equals(error.getSQLState())) {
                return;
            }
            throw error;
        }
        throw new AssertionError("no error where " + state + " is due");
    }

    private void execute(String sql) throws SQLException {
        try (Statement statement = client.createStatement()) {
            statement.execute(sql);
        }
    }

    // The one value of a query's one row.
    private static Object value(Connection on, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = on.prepareStatement(sql)) {
            for (int at = 0; at < values.length; at++) {
                statement.setObject(at + 1, values[at]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                equal(true, rows.next());
                Object found = rows.getObject(1);
                equal(false, rows.next());
                return found;
            }
        }
    }

    private Object value(String sql, Object... values) throws SQLException {
        return value(client, sql, values);
    }

    private static List<Integer> numbers(ResultSet rows) throws SQLException {
        List<Integer> found = new ArrayList<>();
        while (rows.next()) {
            found.add(rows.getInt(1));
        }
        return found;
    }

    private static List<Integer> numbers(int first, int last) {
        return IntStream.rangeClosed(first, last).boxed().collect(Collectors.toList());
    }

    private void settings() throws SQLException {
        equal("pgjdbc", value("SHOW application_name"));
        equal("55s", value("SHOW statement_timeout"));
        equal("Asia/Tokyo", value("SHOW TimeZone"));
        equal("\"$user\", pg_catalog", value("SHOW search_path"));
        // The driver's own, in its startup packet.
        equal("3", value("SHOW extra_float_digits"));
        equal(user, value("SELECT current_user::text"));
        // By ParameterStatus, and asked.
        equal("pgjdbc", ((PGConnection) client).getParameterStatus("application_name"));
        client.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        equal("serializable", value("SHOW transaction_isolation"));
        client.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        equal("read committed", value("SHOW transaction_isolation"));
    }

    private void statements() throws SQLException {
        for (int n : new int[] {1, 41}) {
            kept.setInt(1, n);
            kept.setString(2, "ä" + n);
            try (ResultSet rows = kept.executeQuery()) {
                equal(true, rows.next());
                equal(n + 1, rows.getInt("n"));
                equal("ä" + n, rows.getString("t"));
                equal(false, rows.next());
            }
        }
        equal(42, value("EXECUTE by_sql (21)"));
        String known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = ?";
        equal(1L, value(known, "SELECT $1::int + 1 AS n, $2::text AS t"));
        // Its name ends with it: a Close before the next statement.
        String passing = "SELECT " + ++fresh + " + ?";
        try (PreparedStatement statement = client.prepareStatement(passing)) {
            for (int n = 3; n < 6; n++) {
                statement.setInt(1, n);
                try (ResultSet rows = statement.executeQuery()) {
                    equal(List.of(fresh + n), numbers(rows));
                }
            }
        }
    }

    private void types() throws SQLException {
        String sql = "SELECT ?::int, ?::int8, ?::float8, ?::numeric, ?::bool, ?::text, ?::bytea,"
            + " ?::date, ?::timestamptz, ?::jsonb, ?::int[], ?::uuid, ?::int, ?::timestamptz::text";
        OffsetDateTime when = OffsetDateTime.parse("2024-02-29T12:34:56.789Z");
        UUID uuid = UUID.fromString("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        byte[] bytes = {0, 1, -2, -1};
        try (PreparedStatement statement = client.prepareStatement(sql)) {
            // The first time as text, then in binary.
            for (int again = 0; again < 3; again++) {
                statement.setInt(1, -7);
                statement.setLong(2, 9007199254740993L);
                statement.setDouble(3, 0.1);
                statement.setBigDecimal(4, new BigDecimal("1.50"));
                statement.setBoolean(5, true);
                statement.setString(6, "text ä 日本");
                statement.setBytes(7, bytes);
                statement.setDate(8, Date.valueOf("2024-02-29"));
                statement.setObject(9, when);
                statement.setObject(10, "{\"a\": [1, null]}", Types.OTHER);
                statement.setArray(11, client.createArrayOf("int4", new Integer[] {1, null, 3}));
                statement.setObject(12, uuid);
                statement.setNull(13, Types.INTEGER);
                statement.setObject(14, when);
                try (ResultSet row = statement.executeQuery()) {
                    equal(true, row.next());
                    equal(-7, row.getInt(1));
                    equal(9007199254740993L, row.getLong(2));
                    equal(0.1, row.getDouble(3));
                    equal(new BigDecimal("1.50"), row.getBigDecimal(4));
                    equal(true, row.getBoolean(5));
                    equal("text ä 日本", row.getString(6));
                    equal(bytes, row.getBytes(7));
                    equal(Date.valueOf("2024-02-29"), row.getDate(8));
                    equal(when.toInstant(), row.getObject(9, OffsetDateTime.class).toInstant());
                    equal("{\"a\": [1, null]}", row.getString(10));
                    Array array = row.getArray(11);
                    equal(new Integer[] {1, null, 3}, array.getArray());
                    equal(uuid, row.getObject(12));
                    equal(0, row.getInt(13));
                    equal(true, row.wasNull());
                    equal("2024-02-29 21:34:56.789+09", row.getString(14));
                }
            }
        }
    }

    private void errors() throws Exception {
        refused("22012", () -> value("SELECT 1 / 0"));
        refused("22012", () -> value("SELECT 1 / ?::int", 0));
        refused("42601", () -> value("SELEC ?", ++fresh));
        client.setAutoCommit(false);
        equal(4, value("SELECT ?::int", 4));
        Savepoint before = client.setSavepoint("before");
        refused("22P02", () -> value("SELECT ?::text::int", "none"));
        refused("25P02", () -> value("SELECT 1"));
        client.rollback(before);
        equal(5, value("SELECT 5"));
        client.commit();
        client.setAutoCommit(true);
        equal(6, value("SELECT ?::int", 6));
    }

    private static String lines(int last) {
        return IntStream.rangeClosed(1, last)
            .mapToObj(n -> n + "\tä " + n + "\n")
            .collect(Collectors.joining());
    }

    private CopyManager copies() throws SQLException {
        return ((PGConnection) client).getCopyAPI();
    }

    private void copyIn() throws Exception {
        execute("TRUNCATE copied");
        equal(500L, copies().copyIn("COPY copied FROM STDIN", new StringReader(lines(500))));
    }

    private void copy_in() throws Exception {
        copyIn();
        equal(125250L, value("SELECT sum(id) FROM copied"));
        equal("ä 77", value("SELECT what FROM copied WHERE id = ?", 77));
    }

    private void copy_out() throws Exception {
        copyIn();
        StringWriter found = new StringWriter();
        String sql = "COPY (SELECT * FROM copied ORDER BY id) TO STDOUT";
        equal(500L, copies().copyOut(sql, found));
        equal(lines(500), found.toString());
    }

    private void failing_copy() throws Exception {
        execute("TRUNCATE copied");
        // The server does not take it.
        String wrong = "1\tgood\nno number\tbad\n";
        refused("22P02", () -> copies().copyIn("COPY copied FROM STDIN", new StringReader(wrong)));
        // The client gives up in the middle: a CopyFail.
        CopyIn in = copies().copyIn("COPY copied FROM STDIN");
        byte[] line = "1\tgood\n".getBytes(StandardCharsets.UTF_8);
        in.writeToCopy(line, 0, line.length);
        in.cancelCopy();
        // The server fails in the middle.
        String failing = "COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT";
        refused("22012", () -> copies().copyOut(failing, new StringWriter()));
        equal(0L, value("SELECT count(*) FROM copied"));
    }

    private CompletableFuture<Void> started(Statement statement, String sql) {
        return CompletableFuture.runAsync(() -> {
            try {
                statement.execute(sql);
            } catch (SQLException error) {
                throw new CompletionException(error);
            }
        });
    }

    private void outcome(CompletableFuture<Void> running) throws SQLException {
        try {
            running.join();
        } catch (CompletionException failed) {
            throw (SQLException) failed.getCause();
        }
    }

    private void cancel() throws Exception {
        try (Statement statement = client.createStatement()) {
            String text = "SELECT pg_sleep(50)";
            long began = System.nanoTime();
            CompletableFuture<Void> slow = started(statement, text);
            String active = "SELECT count(*) FROM pg_stat_activity"
                + " WHERE usename = ? AND query = ? AND state = 'active'";
            while (value(other, active, user, text).equals(0L)) {
                equal(true, System.nanoTime() - began < PATIENCE);
            }
            statement.cancel();
            refused("57014", () -> outcome(slow));
            equal(true, System.nanoTime() - began < PATIENCE);
            // One that comes about when its query ends meets that or nothing.
            CompletableFuture<Void> quick = started(statement, "SELECT pg_sleep(0.002)");
            statement.cancel();
            try {
                outcome(quick);
            } catch (SQLException error) {
                equal("57014", error.getSQLState());
            }
            equal(8, value("SELECT 8 FROM pg_sleep(0.002)"));
        }
    }

    private void cursor() throws Exception {
        client.setAutoCommit(false);
        try (PreparedStatement statement = client.prepareStatement("SELECT n FROM generate_series(1, ?) n")) {
            statement.setInt(1, 120);
            // A portal that is executed 25 rows at a time.
            statement.setFetchSize(25);
            try (ResultSet rows = statement.executeQuery()) {
                equal(numbers(1, 120), numbers(rows));
            }
            // One that is left in the middle.
            try (ResultSet rows = statement.executeQuery()) {
                equal(true, rows.next());
                equal(1, rows.getInt(1));
            }
        }
        execute("DECLARE declared CURSOR FOR SELECT n FROM generate_series(1, 120) n");
        for (int first : new int[] {1, 61}) {
            try (Statement statement = client.createStatement();
                    ResultSet rows = statement.executeQuery("FETCH 60 FROM declared")) {
                equal(numbers(first, first + 59), numbers(rows));
            }
        }
        client.commit();
        client.setAutoCommit(true);
        equal(0L, value("SELECT count(*) FROM pg_cursors WHERE name = ?", "declared"));
    }

    private void notifications() throws Exception {
        equal("news", value("SELECT pg_listening_channels()"));
        int first = sent;
        Set<String> missing = new HashSet<>();
        Set<String> heard = new HashSet<>();
        for (int n = 0; n < 5; n++) {
            missing.add("news " + sent);
            value(other, "SELECT pg_notify('news', ?)::text", String.valueOf(sent++));
        }
        long began = System.nanoTime();
        while (!missing.isEmpty()) {
            if (System.nanoTime() - began > PATIENCE) {
                throw new AssertionError("not heard: " + missing + ", but: " + heard);
            }
            PGNotification[] news = ((PGConnection) client).getNotifications(100);
            for (PGNotification one : news == null ? new PGNotification[0] : news) {
                heard.add(one.getName() + " " + one.getParameter());
                missing.remove(one.getName() + " " + one.getParameter());
                // One may come twice; no other.
                int number = Integer.parseInt(one.getParameter());
                equal(true, number < sent && number >= first - 5);
            }
        }
    }

    private void batch() throws Exception {
        execute("TRUNCATE copied");
        // Rewritten to inserts of many rows each.
        try (PreparedStatement insert = client.prepareStatement("INSERT INTO copied VALUES (?, ?)")) {
            for (int n = 1; n <= 100; n++) {
                insert.setInt(1, n);
                insert.setString(2, "ä " + n);
                insert.addBatch();
            }
            equal(100, insert.executeBatch().length);
        }
        // As they are, one behind the other.
        try (PreparedStatement update = client.prepareStatement("UPDATE copied SET what = ? WHERE id > ?")) {
            int[] expected = new int[20];
            for (int n = 1; n <= 20; n++) {
                update.setString(1, "round " + n);
                update.setInt(2, 5 * n);
                update.addBatch();
                expected[n - 1] = 100 - 5 * n;
            }
            equal(expected, update.executeBatch());
        }
        equal("round 15", value("SELECT what FROM copied WHERE id = ?", 77));
        // One of them fails: nothing is done.
        try (PreparedStatement delete = client.prepareStatement("DELETE FROM copied WHERE id = 10 / ?")) {
            for (int divisor : new int[] {1, 2, 0, 5}) {
                delete.setInt(1, divisor);
                delete.addBatch();
            }
            delete.executeBatch();
            throw new AssertionError("a wrong batch is taken");
        } catch (BatchUpdateException error) {
            equal("22012", error.getSQLState());
        }
        equal(100L, value("SELECT count(*) FROM copied"));
        try (Statement many = client.createStatement()) {
            equal(true, many.execute("SELECT 1; SELECT 2; UPDATE copied SET what = 'x' WHERE id < 4"));
            equal(List.of(1), numbers(many.getResultSet()));
            equal(true, many.getMoreResults());
            equal(List.of(2), numbers(many.getResultSet()));
            equal(false, many.getMoreResults());
            equal(3, many.getUpdateCount());
        }
    }

    private Map<String, Step> steps() {
        Map<String, Step> steps = new LinkedHashMap<>();
        steps.put("settings", this::settings);
        steps.put("statements", this::statements);
        steps.put("types", this::types);
        steps.put("errors", this::errors);
        steps.put("copy_in", this::copy_in);
        steps.put("copy_out", this::copy_out);
        steps.put("failing_copy", this::failing_copy);
        steps.put("cancel", this::cancel);
        steps.put("cursor", this::cursor);
        steps.put("notifications", this::notifications);
        steps.put("batch", this::batch);
        return steps;
    }

    public static void main(String[] arguments) throws Exception {
        Driver driver = new Driver(arguments[0], arguments[1]);
        PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        answers.println("ok");
        Map<String, Step> steps = driver.steps();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String step = input.readLine(); step != null; step = input.readLine()) {
            try {
                steps.get(step).run();
                answers.println("ok");
            } catch (Exception | AssertionError error) {
                error.printStackTrace();
                answers.println("failed: " + error.toString().replaceAll("\\s+", " "));
            }
        }
        driver.client.close();
        driver.other.close();
    }
}
